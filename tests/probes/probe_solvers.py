"""Readers that know how each probe asks, and nothing of how it is made: they see the text alone."""

import re
from collections import Counter

ORDINALS = ("first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth")


def solve(kind: str, text: str) -> str | None:
    """The answer to the question at the end of the text, or None when the text does not hold it."""
    body, _, question = text.rpartition("\n")
    return SOLVERS[kind]("\n" + body + "\n", question)


def one(pattern: str, body: str) -> str | None:
    found = set(re.findall(pattern, body))
    return found.pop() if len(found) == 1 else None


def needle(body, question):
    key = re.fullmatch(r"The (?:code|number|value) of (\S+) is", question)[1]
    return one(rf"\nThe \w+ of {re.escape(key)} is (\S+)\.\n", body)


def key_value(body, question):
    return one(rf"\n{re.escape(question)} (\w+)\.\n", body)


def passkey(body, question):
    return one(r"\nThe pass key is (\d+)\. Remember", body)


def multi_value(body, question):
    key = re.search(r"numbers of (\S+),", question)[1]
    return ", ".join(re.findall(rf"\nOne of the numbers of {key} is (\d+)\.(?=\n)", body)) or None


def multi_query(body, question):
    keys = re.fullmatch(r"The numbers of (.*) are", question)[1].split(", ")
    found = [one(rf"\nThe number of {key} is (\d+)\.\n", body) for key in keys]
    return None if None in found else ", ".join(found)


def variables(body, question):
    value, held = re.search(r"value (\d+) are", question)[1], []
    for name, right in re.findall(r"\nVAR (\w+) = (?:VAR )?(\w+)(?=\n)", body):
        if right == value or right in held:
            held.append(name)
    return " ".join(held) or None


def ordinal(body, question):
    nth, subject = re.fullmatch(r"The (\w+) note on (\S+):", question).groups()
    notes = re.findall(rf"\nNote on {subject}: ([\w ]+)\.(?=\n)", body)
    return notes[ORDINALS.index(nth)] if len(notes) > ORDINALS.index(nth) else None


def graph(body, question):
    start, hops = re.search(r"starts in (\w+) and follows (\d+)", question).groups()
    roads = dict(re.findall(r"\nThe road from (\w+) leads to (\w+)\.(?=\n)", body))
    for _ in range(int(hops)):
        start = roads.get(start)
    return start


def latent(body, question):
    from longspan.probes.latent import SIGHTS  # what one knows of the world

    country = re.search(r"lives in ([\w ]+) is called", question)[1]
    sight = next(sight for sight, there in SIGHTS if there == country)
    line = re.search(rf"\n(.*{re.escape(sight)}.*)\n", body)
    return re.search(r"[A-Z](?:[a-z]{2}){4}\b|[A-Z][a-z]{7}\b", line[1])[0] if line else None


def aggregate(body, question):
    name = re.search(r"delivered by (\S+) were", question)[1]
    found = re.findall(rf"\nOn that day {name} delivered (\d+) barrels\.(?=\n)", body)
    return str(sum(map(int, found))) if found else None


def coined(body):
    return re.findall(r"\b[A-Z](?:[a-z]{7})\b", body)


def common_words(body, question):
    wanted = int(re.search(r"The (\d+) words", question)[1])
    best = {word for word, _ in Counter(coined(body)).most_common(wanted)}
    return " ".join(dict.fromkeys(word for word in coined(body) if word in best))


def frequent_words(body, question):
    wanted = int(re.search(r"The (\d+) most", question)[1])
    return " ".join(word for word, _ in Counter(coined(body)).most_common(wanted))


def documents(body, question):
    who = re.search(r"years (?:the one who taught )?(\w+) kept a", question)[1]
    if "taught" in question:
        who = one(rf"\n{who} was born in \w+ and was taught by (\w+)\.", body)
    return one(rf"In later years {who} kept a ([\w]+ [\w]+) in", body)


def many_shot(body, question):
    votes, words = Counter(), set(question.removesuffix(" is").split())
    label_of: dict[str, Counter] = {}
    for line, label in re.findall(r"\n([\w ]+) is (\w+)\.(?=\n)", body):
        for word in line.split():
            label_of.setdefault(word, Counter())[label] += 1
    for word in words:
        if len(label_of.get(word, ())) == 1:  # a cue goes with one label alone
            votes.update(label_of[word])
    return votes.most_common(1)[0][0] if votes else None


SOLVERS = {
    "needle": needle,
    "multi_key": needle,
    "uuid": needle,
    "key_value": key_value,
    "passkey": passkey,
    "multi_value": multi_value,
    "multi_query": multi_query,
    "variables": variables,
    "ordinal": ordinal,
    "graph": graph,
    "latent": latent,
    "aggregate": aggregate,
    "common_words": common_words,
    "frequent_words": frequent_words,
    "documents": documents,
    "many_shot": many_shot,
}
