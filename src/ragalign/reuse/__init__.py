"""Keys and values of demonstrations, computed once and put into any prompt at any place."""
