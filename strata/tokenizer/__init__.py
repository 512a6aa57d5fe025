"""Chapter 1: how text becomes numbers. Byte-level byte-pair encoding, learnt and applied.

scanner.py    cuts text into words
counting.py   counts the words of a corpus
trainer.py    learns from the counts which pairs of tokens to merge, and in what order
encoder.py    applies the merges to words
tokenizer.py  puts these together: `Tokenizer`
special.py    finds the names of special tokens in a text
formats.py    writes and reads Strata's own file of a tokenizer
exchange.py   reads and writes the files of tiktoken and GPT-2
huggingface.py  and those of Hugging Face's tokenizers
memory.py     what the compiled parts share
"""

from strata.tokenizer.scanner import REGULAR_EXPRESSIONS, split_words
from strata.tokenizer.special import SPECIAL_TOKENS
from strata.tokenizer.tokenizer import Tokenizer, merge_steps

__all__ = ["REGULAR_EXPRESSIONS", "SPECIAL_TOKENS", "Tokenizer", "merge_steps", "split_words"]
