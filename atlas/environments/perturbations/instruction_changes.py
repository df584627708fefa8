"""The same task in other words: paraphrases, another word order, typing errors, other languages, colour synonyms."""

from __future__ import annotations

import re

import numpy as np

from atlas.environments.perturbations.perturbation import InstructionPerturbation, words_of

# By the instruction's verb, from a close paraphrase to a distant one; {rest} is what follows the verb.
_PARAPHRASES = {
    "pick up": (
        "grab {rest}",
        "please lift {rest}",
        "could you get hold of {rest}",
        "your job now is to raise {rest}",
        "what I would like you to do is to hoist {rest}",
    ),
    "put": (
        "place {rest}",
        "please set {rest}",
        "could you lay {rest}",
        "your job now is to deposit {rest}",
        "what I would like you to do is to position {rest}",
    ),
    "open": (
        "pull open {rest}",
        "please open up {rest}",
        "could you get {rest} open",
        "your job now is to unclose {rest}",
        "what I would like you to do is to make {rest} stand open",
    ),
    "close": (
        "shut {rest}",
        "please push {rest} shut",
        "could you get {rest} closed",
        "your job now is to seal {rest}",
        "what I would like you to do is to make {rest} stand closed",
    ),
    "push": (
        "shove {rest}",
        "please move {rest}",
        "could you slide {rest}",
        "your job now is to nudge {rest}",
        "what I would like you to do is to shift {rest}",
    ),
    "turn on": (
        "switch on {rest}",
        "please start {rest}",
        "could you power up {rest}",
        "your job now is to activate {rest}",
        "what I would like you to do is to set {rest} going",
    ),
}
# One language per level: German, French, Spanish, Polish, Chinese. {0} is the colour, inflected as the sentence needs.
_SENTENCES = {
    "pick up the {0} cube": (
        "hebe den {0} Würfel auf",
        "ramasse le cube {0}",
        "levanta el cubo {0}",
        "podnieś {0} kostkę",
        "拿起{0}方块",
    ),
}
_COLOURS_ABROAD = {
    "red": ("roten", "rouge", "rojo", "czerwoną", "红色"),
    "green": ("grünen", "vert", "verde", "zieloną", "绿色"),
}
_SYNONYMS = {
    "red": ("reddish", "crimson", "scarlet", "ruby", "vermilion"),
    "green": ("greenish", "emerald", "jade", "lime", "viridian"),
    "black": ("blackish", "ebony", "jet", "onyx", "sable"),
    "white": ("whitish", "snowy", "ivory", "alabaster", "chalky"),
    "yellow": ("yellowish", "golden", "lemon", "amber", "saffron"),
    "blue": ("bluish", "azure", "navy", "cobalt", "sapphire"),
}
_LETTERS = "abcdefghijklmnopqrstuvwxyz"


class Paraphrase(InstructionPerturbation):
    """The verb in other words, from 'grab …' to 'what I would like you to do is to hoist …'."""

    @classmethod
    def reworded(cls, instruction: str, level: int, rng: np.random.Generator) -> str | None:
        for verb, paraphrases in _PARAPHRASES.items():
            if instruction.startswith(f"{verb} "):
                return paraphrases[level - 1].format(rest=instruction.removeprefix(f"{verb} "))
        return None


class WordOrder(InstructionPerturbation):
    """Swaps two neighbouring words, once per level."""

    @classmethod
    def reworded(cls, instruction: str, level: int, rng: np.random.Generator) -> str | None:
        words = words_of(instruction)
        if len(words) < 3:
            return None
        last = -1
        for _ in range(level):
            place = int(rng.choice([each for each in range(len(words) - 1) if each != last]))
            words[place], words[place + 1] = words[place + 1], words[place]
            last = place
        return " ".join(words)


class Typos(InstructionPerturbation):
    """One typing error per level: a letter that is left out, doubled, swapped or replaced."""

    @classmethod
    def reworded(cls, instruction: str, level: int, rng: np.random.Generator) -> str | None:
        text = instruction
        for _ in range(level):
            letters = [place for place in range(len(text) - 1) if text[place].isalpha() and text[place + 1].isalpha()]
            if not letters:
                return None
            place, kind = int(rng.choice(letters)), int(rng.integers(4))
            other = _LETTERS[int(rng.integers(len(_LETTERS)))]
            here = {0: "", 1: 2 * text[place], 2: text[place + 1] + text[place], 3: other}[kind]
            text = text[:place] + here + text[place + (2 if kind == 2 else 1) :]
        return text


class OtherLanguage(InstructionPerturbation):
    """German, French, Spanish, Polish and Chinese at levels 1 to 5."""

    @classmethod
    def reworded(cls, instruction: str, level: int, rng: np.random.Generator) -> str | None:
        for sentence, abroad in _SENTENCES.items():
            found = re.fullmatch(re.escape(sentence).replace(r"\{0\}", "(.+)"), instruction)
            if found is not None and found[1] in _COLOURS_ABROAD:
                return abroad[level - 1].format(_COLOURS_ABROAD[found[1]][level - 1])
        return None


class ColourSynonym(InstructionPerturbation):
    """Another word for each colour, from 'reddish' to 'vermilion'."""

    @classmethod
    def reworded(cls, instruction: str, level: int, rng: np.random.Generator) -> str | None:
        words = words_of(instruction)
        if not any(word in _SYNONYMS for word in words):
            return None
        return " ".join(_SYNONYMS[word][level - 1] if word in _SYNONYMS else word for word in words)
