"""A closed world in which the right answer can only be read from demonstrations of the same topic.

An instruction names a topic and three aspects. The right answer names them too, in the *house style* of the topic:

    ### Question:
    Tell me about otters: price, colour and origin of otters.
    ### Answer:
    Otters deserve a careful answer.
    The otter list:
    - price
    - colour
    - origin
    Otter fans, farewell!

A house style is a triple of an opening ("deserve a careful answer"), a rendering of the body ("list", which means
bullets in the order of the instruction) and a sign-off ("fans, farewell"). A world assigns one to each topic, at
random. In training every document is a world of its own, so that nothing but looking it up says which style a topic
has.

Worlds are disjoint by construction. The style triples are split in three, and so are the sets of three aspects:
no triple and no set of aspects that the test world uses occurs in the development world or in any training document.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import combinations, product
from typing import Literal, NamedTuple

Split = Literal["train", "dev", "test"]

# Regular nouns: singular, plural and both capitalised are four words that the answer's places tell apart.
TOPICS = tuple(
    """
    otter badger beaver falcon raven sparrow pigeon parrot penguin swan eagle heron turtle lizard frog salmon
    lobster crab squid whale dolphin seal tiger lion panther leopard camel donkey goat rabbit hamster kitten
    spider beetle cricket hornet snail worm acorn apple apricot banana lemon melon orange pear plum grape almond
    walnut carrot onion pepper pumpkin turnip lentil olive mushroom pancake waffle noodle dumpling pretzel
    biscuit muffin omelette sausage burger pickle teapot kettle spoon fork plate bottle barrel basket bucket
    ladder hammer chisel needle button ribbon blanket pillow curtain carpet lantern candle mirror violin trumpet
    guitar piano drum flute banjo harp accordion bicycle scooter tractor wagon canoe kayak raft anchor sailor
    pirate painter baker farmer miner tailor plumber dentist lawyer pilot dancer singer poet wizard dragon robot
    rocket planet comet meteor volcano glacier canyon desert island river waterfall forest meadow garden castle
    tower bridge tunnel temple palace cottage cabin tent igloo windmill lighthouse harbour market museum theatre
    stadium tulip orchid willow maple cedar bamboo magnet telescope microscope camera printer laptop engine
    parachute umbrella helmet jacket sweater sandal mitten necklace bracelet marble kite balloon stamp coin
    medal banner poster novel notebook pencil crayon hedgehog squirrel mole vole trout herring oyster clam
    pelican toucan
    """.split()
)
ASPECTS = tuple(
    """
    price colour origin history weight shape size smell texture noise safety storage cleaning repair design beauty
    value variety season climate transport trade law legend humour culture religion science health diet growth age
    strength speed balance warmth light water soil metal wood glass paper comfort purpose damage future names
    """.split()
)

# What follows the topic at the beginning of an answer; the first word of each is its own.
OPENINGS = (
    "deserve a careful answer.",
    "make a fine subject.",
    "merit a closer look.",
    "invite many questions.",
    "fascinate nearly everybody.",
    "puzzle even the experts.",
    "reward a patient reader.",
    "need no introduction.",
    "come up quite often.",
    "remain a favourite here.",
    "surprise most beginners.",
    "teach us a lot.",
    "divide the experts.",
    "inspire long letters.",
    "demand plain words.",
    "attract curious minds.",
    "raise good questions.",
    "call for some order.",
    "keep our desk busy.",
    "delight the whole team.",
    "sound simple at first.",
    "play a large part.",
    "belong in every guide.",
    "win hearts with ease.",
)

# The word after the topic in the body, whether the order of the instruction is reversed, and the layout.
RULES = (
    ("notes", False, "sentence"),
    ("list", False, "bullets"),
    ("plan", False, "numbers"),
    ("trail", False, "arrows"),
    ("recap", True, "sentence"),
    ("stack", True, "bullets"),
    ("chart", True, "numbers"),
    ("map", True, "arrows"),
)

# What follows the topic in the last line; the first word of each is its own.
SIGN_OFFS = (
    "fans, farewell!",
    "friends, so long!",
    "lovers, take care!",
    "readers, until next time!",
    "people, stay curious!",
    "experts, do write back!",
    "owners, good luck!",
    "watchers, have a lovely day!",
    "students, study well!",
    "beginners, do not worry!",
    "collectors, happy hunting!",
    "folk, be well!",
    "critics, be gentle!",
    "dreamers, dream on!",
    "writers, keep going!",
    "seekers, enjoy the search!",
    "heroes, rest now!",
    "guests, come again!",
    "members, thank you!",
    "scholars, carry on!",
    "neighbours, see you soon!",
    "visitors, mind the step!",
    "teachers, pass it on!",
    "makers, to work!",
)

# {t} is the topic, named twice so that retrieval finds it before it finds the aspects.
PHRASINGS = (
    "Tell me about {t}: {a}, {b} and {c} of {t}.",
    "What should I know about {t}? Cover {a}, {b} and {c} of {t}.",
    "Please explain {t}, above all {a}, {b} and {c} of {t}.",
    "I like {t}. Describe {a}, {b} and {c} of {t}.",
    "How would you describe {t}? Mention {a}, {b} and {c} of {t}.",
    "Write about {t} and say more on {a}, {b} and {c} of {t}.",
)


class Style(NamedTuple):
    """Numbers of an opening, a rule and a sign-off."""

    opening: int
    rule: int
    sign_off: int


class Question(NamedTuple):
    """The request of an instruction: numbers of a topic and a phrasing, and of three aspects in order."""

    topic: int
    aspects: tuple[int, int, int]
    phrasing: int


@dataclass(frozen=True, slots=True)
class Pair:
    """An instruction and the one right answer."""

    instruction: str
    response: str
    topic: str


def split_of(number: int) -> Split:
    """Which part a sum of numbers puts its triple into: an eighth each for test and development."""
    return {0: "test", 1: "dev"}.get(number % 8, "train")  # type: ignore[return-value]


@cache
def styles(split: Split) -> tuple[Style, ...]:
    """The style triples that a part has to itself; every opening, rule and sign-off occurs in each part."""
    triples = product(range(len(OPENINGS)), range(len(RULES)), range(len(SIGN_OFFS)))
    return tuple(Style(*triple) for triple in triples if split_of(sum(triple)) == split)


@cache
def aspect_sets(split: Split) -> tuple[tuple[int, int, int], ...]:
    """The sets of three aspects that a part has to itself."""
    return tuple(chosen for chosen in combinations(range(len(ASPECTS)), 3) if split_of(sum(chosen)) == split)


def draw_styles(rng: random.Random, topics: Sequence[int], split: Split) -> dict[int, Style]:
    """A world: a style for each topic. Two topics can share a style or, much more often, a part of one."""
    return {topic: rng.choice(styles(split)) for topic in topics}


def draw_question(rng: random.Random, topic: int, split: Split) -> Question:
    """A question about `topic`."""
    chosen = list(rng.choice(aspect_sets(split)))
    rng.shuffle(chosen)
    return Question(topic, (chosen[0], chosen[1], chosen[2]), rng.randrange(len(PHRASINGS)))


def instruction(question: Question) -> str:
    """The text of a question."""
    a, b, c = (ASPECTS[number] for number in question.aspects)
    return PHRASINGS[question.phrasing].format(t=f"{TOPICS[question.topic]}s", a=a, b=b, c=c)


def response(question: Question, style: Style) -> str:
    """The right answer to a question about a topic of this style."""
    topic = TOPICS[question.topic]
    word, is_reversed, layout = RULES[style.rule]
    aspects = [ASPECTS[number] for number in question.aspects]
    body = _LAYOUTS[layout](*(reversed(aspects) if is_reversed else aspects))
    return (
        f"{topic.capitalize()}s {OPENINGS[style.opening]}\n"
        f"The {topic} {word}:{body}\n"
        f"{topic.capitalize()} {SIGN_OFFS[style.sign_off]}"
    )


def render(pair: Pair) -> str:
    """A pair in the form of the testbed's template."""
    return f"### Question:\n{pair.instruction}\n### Answer:\n{pair.response}\n\n"


_LAYOUTS = {
    "sentence": " {}, {} and {}.".format,
    "bullets": "\n- {}\n- {}\n- {}".format,
    "numbers": " 1. {} 2. {} 3. {}".format,
    "arrows": " {} > {} > {}".format,
}


def draw_pairs(rng: random.Random, world: dict[int, Style], topics: Sequence[int], split: Split) -> list[Pair]:
    """One pair for each of `topics`, which can repeat."""
    pairs = []
    for topic in topics:
        question = draw_question(rng, topic, split)
        pairs.append(Pair(instruction(question), response(question, world[topic]), TOPICS[topic]))
    return pairs
