# SPDX-License-Identifier: Apache-2.0
"""Reads corpus.txt (the format is described at the top of that file)."""

from __future__ import annotations

import os
from dataclasses import dataclass, field

HERE = os.path.dirname(os.path.abspath(__file__))
CORPUS = os.path.join(HERE, "corpus.txt")


@dataclass
class Topic:
    category: str
    questions: list[str]
    answers: list[str]


@dataclass
class Corpus:
    topics: list[Topic] = field(default_factory=list)
    dialogues: list[list[tuple[str, str]]] = field(default_factory=list)
    paragraphs: list[str] = field(default_factory=list)

    def texts(self) -> list[str]:
        out = []
        for t in self.topics:
            out += t.questions + t.answers
        for d in self.dialogues:
            out += [text for _, text in d]
        return out + self.paragraphs


def load(path: str = CORPUS) -> Corpus:
    corpus = Corpus()
    category = ""
    seen: dict[str, int] = {}
    with open(path, encoding="utf-8") as f:
        for number, line in enumerate(f, 1):
            line = line.strip()
            if not line or line.startswith("#"):
                continue
            if line.startswith("[") and line.endswith("]"):
                category = line[1:-1]
                continue
            tag, _, text = line.partition(": ")
            if tag == "Q":
                questions = [q.strip() for q in text.split(" | ")]
                for q in questions:
                    if q in seen:
                        raise ValueError(f"{path}:{number}: {q!r} already on line {seen[q]}")
                    seen[q] = number
                corpus.topics.append(Topic(category, questions, []))
            elif tag == "A":
                corpus.topics[-1].answers.append(text)
            elif tag == "D":
                turns = []
                for turn in text.split(" | "):
                    who, _, words = turn.partition(": ")
                    turns.append(({"u": "user", "a": "assistant"}[who], words))
                corpus.dialogues.append(turns)
            elif tag == "P":
                corpus.paragraphs.append(text)
            else:
                raise ValueError(f"{path}:{number}: unknown tag {tag!r}")
    for t in corpus.topics:
        if not t.answers:
            raise ValueError(f"no answer for {t.questions[0]!r}")
    return corpus
