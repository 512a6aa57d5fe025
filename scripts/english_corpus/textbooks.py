"""Running text out of a textbook's module in CNXML, the XML of OpenStax.

A module is a tree of sections, paragraphs, lists and notes. Mark-up inside a line is text; figures,
tables, display equations and exercises go, with the sections that hold nothing else. Mathematics
inside a sentence (MathML) is written as one would type it.
"""

import re
from xml.etree import ElementTree

DROPPED = {
    "figure",
    "subfigure",
    "table",
    "equation",
    "exercise",
    "media",
    "code",
    "metadata",
    "iframe",
    "image",
    "caption",
    "commentary",
    "solution",
    "problem",
}
DROPPED_SECTIONS = re.compile(r"references|bibliography|suggested-reading|further-research")
SHORTEST_PARAGRAPH = 20  # characters: "or" between two display equations is none
BLOCKS = {"para", "list", "note", "section", "example", "quote", "title", "rule", "proof", "div"}
# Operators with a space on both sides, as in "W = PΔt".
SPACED = set("=≈≠<>≤≥+−-×·±→←⇌≡∝∼≅⟶∈≪≫÷∗")


def documents(raw: str, work: str) -> list[list[str]]:
    """The one document of a module: its title, its content in order, its glossary."""
    module = ElementTree.fromstring(raw.lstrip("\ufeff"))
    kept = []
    for part in module:
        if name(part) == "title":
            kept.append(tidy(inline(part)))
        elif name(part) == "content":
            kept += blocks(part)
        elif name(part) == "glossary":
            kept += definitions(part)
    return [[text for text in kept if text]]


def name(element: ElementTree.Element) -> str:
    """The element's name without its namespace; empty for comments."""
    return element.tag.rpartition("}")[2] if isinstance(element.tag, str) else ""


def blocks(parent: ElementTree.Element) -> list[str]:
    """The paragraphs under an element: text between blocks is a paragraph, a block its own."""
    kept: list[str] = []
    running = [parent.text or ""]

    def end_paragraph() -> None:
        text = tidy("".join(running))
        if len(text) >= SHORTEST_PARAGRAPH:
            kept.append(text)
        running.clear()

    for child in parent:
        kind = name(child)
        if kind == "title" and name(parent) == "para" and (title := tidy(inline(child))):
            running.append(f"{title} " if title.endswith((".", "?", "!", ":")) else f"{title}. ")
        elif kind == "title":
            end_paragraph()
            kept.append(tidy(inline(child)))
        elif kind == "list" and child.get("display") != "inline":
            end_paragraph()
            items = (tidy(inline(item)) for item in child if name(item) == "item")
            kept.append("\n".join(f"- {item}" for item in items if item))
        elif kind == "section":
            end_paragraph()
            inside = [] if DROPPED_SECTIONS.search(child.get("class", "")) else blocks(child)
            headed = any(name(part) == "title" for part in child)
            if len(inside) > headed:
                kept += inside
        elif kind in BLOCKS:
            end_paragraph()
            kept += blocks(child)
        elif kind in DROPPED:
            end_paragraph()
        elif kind:
            running.append(inline_element(child))
        running.append(child.tail or "")
    end_paragraph()
    return [text for text in kept if text]


def definitions(glossary: ElementTree.Element) -> list[str]:
    """`term: meaning`, one for each definition."""
    kept = []
    for definition in glossary:
        parts = {name(part): tidy(inline(part)) for part in definition}
        if parts.get("term") and parts.get("meaning"):
            kept.append(f"{parts['term']}: {parts['meaning']}")
    return kept


def inline(element: ElementTree.Element) -> str:
    """The text of an element and all inside it, as one line."""
    inside = (inline_element(child) + (child.tail or "") for child in element)
    return (element.text or "") + "".join(inside)


def inline_element(element: ElementTree.Element) -> str:
    kind = name(element)
    if not kind or kind in DROPPED:
        return ""
    if kind == "math":
        return formula(element)
    if kind == "link" and not "".join(element.itertext()).strip():
        return "Table" if "table" in element.get("target-id", "").lower() else "Figure"
    if kind == "sup":
        return script("^", inline(element))
    if kind in {"newline", "space"} or kind in BLOCKS | {"item"}:
        return f" {inline(element)} "
    return inline(element)


def formula(element: ElementTree.Element) -> str:
    """MathML as a line of plain text."""
    kind = name(element)
    text = re.sub(r"\s+", " ", element.text or "")
    parts = [formula(child) for child in element if name(child)]
    if kind == "mo":
        text = text.strip()
        return f" {text} " if text in SPACED else text
    if kind == "mtext":
        return text.replace("\xa0", " ")
    if kind == "mspace":
        return " "
    if kind == "mfrac" and len(parts) == 2:
        above, below = (
            p.strip() if re.fullmatch(r"[\w.]+", p.strip()) else f"({p.strip()})" for p in parts
        )
        return f"{above}/{below}"
    if kind in {"mover", "munder"} and len(parts) == 2:
        return f"{parts[0]} {parts[1].strip()}"
    if kind in {"msup", "msub"} and len(parts) == 2:
        return parts[0] + script("^" if kind == "msup" else "_", parts[1])
    if kind == "msubsup" and len(parts) == 3:
        return parts[0] + script("_", parts[1]) + script("^", parts[2])
    if kind == "msqrt":
        return f"√({''.join(parts)})"
    if kind == "mfenced":
        return element.get("open", "(") + ", ".join(parts) + element.get("close", ")")
    if kind in {"annotation", "annotation-xml"}:
        return ""
    return text.strip() + "".join(parts)


def script(sign: str, text: str) -> str:
    """`_b` or `^2`, in parentheses where it is more than one letter or sign."""
    text = text.strip()
    return sign + (text if len(text) < 2 or text.lstrip("+−-–").isdigit() else f"({text})")


def tidy(text: str) -> str:
    """One line; what removing a reference leaves is closed up."""
    text = re.sub(r"\s+", " ", text).strip()
    text = re.sub(r" ?\((?:see )?(?:Figure|Table)\)", "", text)
    return re.sub(r" ([,.;:)])", r"\1", text)
