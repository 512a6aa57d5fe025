"""Chapter 1: how text becomes numbers. Byte-level byte-pair encoding, learnt and applied.

scanner.py      cuts text into words
counting.py     counts the words of a corpus
trainer.py      learns from the counts which pairs of tokens to merge, and in what order
merging.py      merges one word
vocabulary.py   the tables that make it fast
encoder.py      texts to ids and back
special.py      tokens that stand for no text
tokenizer.py    puts these together: `Tokenizer`
formats.py      its file; exchange.py and huggingface.py: those of other libraries
memory.py       what the compiled parts share
"""

from strata.tokenizer.scanner import REGULAR_EXPRESSIONS, split_words
from strata.tokenizer.special import SPECIAL_TOKENS
from strata.tokenizer.tokenizer import Tokenizer, merge_steps

__all__ = ["REGULAR_EXPRESSIONS", "SPECIAL_TOKENS", "Tokenizer", "merge_steps", "split_words"]
