"""The code on the page on extending the book runs as it stands, with small models in place of the reader's."""

import re

import pandas as pd

from conftest import ROOT, make_question

BLOCKS = re.findall(r"```python\n(.*?)```", (ROOT / "book" / "extend.md").read_text(), re.DOTALL)


def table():
    rows = []
    for split, n in (("dev", 5), ("test", 40)):
        for s in range(3):
            for i in range(n):
                question = make_question(f"subject_{s}", 1000 * (split == "test") + 100 * s + i)
                options = dict(zip("ABCD", question.options, strict=True))
                text = f"{question.text} ({split} {i})"
                row = {"subject": question.subject, "question": text, "answer": "ABCD"[question.answer], "split": split}
                rows.append(row | options)
    return pd.DataFrame(rows)


def test_a_readers_own_model_and_questions(own_cache, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    table().to_csv("my_questions.csv", index=False)
    code = BLOCKS[0]
    assert len([line for line in code.splitlines() if line.strip() and not line.startswith(("import", "from"))]) < 20
    exec(code.replace("./my-model", "tiny-llama"), {})
    lines = [line for line in capsys.readouterr().out.splitlines() if "peaks, ARI with subject" in line]
    assert [line.split()[0] for line in lines] == ["1", "2", "3", "4"]


def test_a_readers_own_vision_language_model(own_cache, capsys):
    code = BLOCKS[1].replace("./my-vlm", "mini-native-0")
    code = code.replace("n_questions=100", "n_questions=4")
    exec(code, {})
    assert "end → text" in capsys.readouterr().out
