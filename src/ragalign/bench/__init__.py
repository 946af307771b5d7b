"""The benchmark: recipes side by side on the same prompts, for quality, cost and speed.

conditions, cases -> completion files (`running`) -> verdicts (`scoring`, `judging`) -> figures (`costs`, `figures`)
"""
