"""Imported once by the server that forks the tests' processes: what each would do first."""

import importlib

from strata.tokenizer import Tokenizer

for name in ("cli", "evaluation", "training.launch"):
    importlib.import_module(f"strata.{name}")
importlib.import_module("torch._dynamo")  # which several processes need, and one does not

# the first use of the tokenizer loads its machine code
Tokenizer.from_ranks({bytes([byte]): byte for byte in range(256)}, pattern="strata").encode("text")
