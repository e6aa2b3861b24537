"""Run pytest again and again, each time in a process forked from this one, which has the libraries imported already.

Importing them takes longer than a short test.  What is read, a line each: pytest's arguments and the file for its
output, as JSON.  What is written, a line each: its exit status.  The book's own code is imported after the fork.
"""

import importlib
import json
import os
import sys
from importlib.util import find_spec

import pytest

LIBRARIES = ("dadapy", "hypothesis", "matplotlib.pyplot", "papermill", "peft", "sklearn.metrics", "torch")
MODELS = ("chameleon", "llama", "llava")

for name in (*filter(find_spec, LIBRARIES), *(f"transformers.models.{model}.modeling_{model}" for model in MODELS)):
    importlib.import_module(name)
for line in sys.stdin:
    arguments, output = json.loads(line)
    child = os.fork()
    if not child:
        file = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(file, 1)
        os.dup2(file, 2)
        status = pytest.main(arguments)
        sys.stdout.flush()
        os._exit(status)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
