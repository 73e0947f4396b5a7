"""The two tasks of BIG-bench that are read, in its package's form, with examples of our own."""


def winowhy(pairs=24):
    """Twins of our own in the package's form, two reasons for each sentence."""
    inputs = []
    for k in range(pairs):
        for word, name in (("big", f"box number {k}"), ("small", "shelf")):
            sentence = f"Box number {k} hardly{k} fits{k} into{k} that{k} shelf since{k} it is{k} so{k} {word} ."
            inputs += [
                f"{sentence} The 'it' refers to {name} because {reason}" for reason in ("so it is.", "it refers")
            ]
    return {"canary": "GUID 1", "examples": [{"input": text, "target_scores": {"correct": 1}} for text in inputs]}


def multirc(paragraphs=24, **change):
    text = "Paragraph- Sent 1: Tom has {k} pears.Sent 2: He ate one (or two). \nQuestion: Who ate? (A) Tom (B) Jim (C) Tom did."
    examples = [{"input": text.format(k=k), "target": ["A, C."]} for k in range(paragraphs)]
    return {"examples": [*examples, {"input": "x", "target": ["A."], **change}] if change else examples}
