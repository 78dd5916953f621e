"""Rows with images: what they become, how their tokens count, and what is refused."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import AutoProcessor
from vision_lab import picture, save_pictures, write_rows

from alignlab.compose import compose
from alignlab.data.gate.chunk import Chunk
from alignlab.data.group import PromptGroup
from alignlab.data.prepared import prepare
from alignlab.data.sources.splits import key_of
from alignlab.data.template import Tokenization
from alignlab.errors import ConfigError, DataError
from alignlab.images import images_of, opened
from alignlab.plan import build_stage
from alignlab.spec import Spec, build


def source(path: Path, **changes: Any) -> Any:
    config = compose(
        ["pipeline=sft", f"data.path={path}", *(f"data.{k}={v}" for k, v in changes.items())]
    )
    return build(Spec.from_node(config["data"], "data"))


def read(folder: Path, *rows: dict[str, Any], **changes: Any) -> list[PromptGroup]:
    path = write_rows(folder / "rows.jsonl", rows)
    settings = {"images": ".", "validation": 0, "test": 0} | changes
    return sorted(source(path, **settings).load("sft"), key=lambda g: g.meta["place"])


def asked(content: Any, answer: str = "Yes.") -> list[dict[str, Any]]:
    return [{"role": "user", "content": content}, {"role": "assistant", "content": answer}]


def tokenization(folder: Path, limit: int = 200) -> Tokenization:
    processor = AutoProcessor.from_pretrained(folder)
    return Tokenization(processor.tokenizer, limit, 50, processor=processor)


@pytest.mark.slow
def test_parts_marks_and_inline_images_are_the_same(tmp_path: Path, llava: Path) -> None:
    name, *_ = save_pictures(tmp_path, [(40, 30)])
    data = (tmp_path / name).read_bytes()
    url = "data:image/png;base64," + base64.b64encode(data).decode()
    part, text = {"type": "image"}, {"type": "text", "text": "What?"}
    groups = read(
        tmp_path,
        {"images": [name], "messages": asked([part, text])},
        {"image": name, "messages": asked("<image>What?")},
        {"messages": asked([{**part, "path": name}, text])},
        {"messages": asked([{"type": "image_url", "image_url": {"url": url}}, text])},
        {"images": [{"bytes": None, "path": name}], "messages": asked("<image>What?")},
    )
    made = tokenization(llava).groups(groups)
    prompt = "<|bos|>user: " + "<image>" * 4 + "What?<|eos|>assistant: "
    expected = tokenization(llava).tokenizer(prompt, add_special_tokens=False)["input_ids"]
    pixels = np.asarray(picture(0, 40, 30))
    for tokens in made:
        assert tokens.prompt.tolist() == expected
        [image] = images_of(tokens.meta)
        assert np.array_equal(np.asarray(opened(image)), pixels)


@pytest.mark.slow
def test_parquet_with_image_features_and_pairs(tmp_path: Path, llava: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    buffer = io.BytesIO()
    picture(3).save(buffer, format="PNG")
    row = {
        "images": [{"bytes": buffer.getvalue(), "path": None}],
        "prompt": "Look: <image> What is it?",
        "chosen": " A dog.",
        "rejected": " No.",
    }
    pq.write_table(pa.Table.from_pylist([row]), tmp_path / "rows.parquet")
    settings = {"validation": 0, "test": 0}
    [group] = source(tmp_path / "rows.parquet", images=".", **settings).load("sft")
    [tokens] = tokenization(llava).groups([group])
    assert len(group.completions) == len(tokens.completions) == 2
    assert np.array_equal(np.asarray(opened(images_of(group.meta)[0])), np.asarray(picture(3)))
    with pytest.raises(DataError, match=r"unless data\.images names"):
        source(tmp_path / "rows.parquet", **settings).load("sft")


@pytest.mark.slow
def test_tiles_count_as_the_processor_counts_them(tmp_path: Path, models: Any) -> None:
    names = save_pictures(tmp_path, [(90, 60), (20, 28)])
    [group] = read(tmp_path, {"images": names, "messages": asked("<image>, <image>?")})
    [tokens] = tokenization(models["idefics3"]).groups([group])
    processor = AutoProcessor.from_pretrained(models["idefics3"])
    text = "<|bos|>user: <image>, <image>?<|eos|>assistant: "
    shown = [picture(0, 90, 60), picture(1, 20, 28)]
    whole = processor(text=[text], images=[shown], add_special_tokens=False)["input_ids"][0]
    assert tokens.prompt.tolist() == list(whole)
    with pytest.raises(DataError, match=f"has {len(whole)} tokens with its images"):
        tokenization(models["idefics3"], len(whole) - 1).groups([group])


def test_several_turns_keep_their_masks(tmp_path: Path, llava: Path) -> None:
    [name] = save_pictures(tmp_path, [(40, 30)])
    turns = [*asked("<image>What?", "A dog."), *asked("Sure?", "Sure.")]
    [group] = read(tmp_path, {"images": [name], "messages": turns})
    [tokens] = tokenization(llava).groups([group])
    [mask] = tokens.masks
    assert mask is not None
    said = tokenization(llava).tokenizer.decode(tokens.completions[0][mask])
    assert said.replace("<|eos|>", "|") == "A dog.|Sure.|"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"images": ["photos/0.png"], "messages": asked("What?")}, "image without a mark"),
        ({"messages": asked("<image>What?")}, "image mark without an image"),
        ({"messages": asked([{"type": "image"}])}, "image mark without an image"),
        ({"images": ["photos/9.png"], "messages": asked("<image>?")}, "'images.0.': the image"),
        ({"images": ["https://x.org/a.png"], "messages": asked("<image>?")}, "is a URL"),
        ({"images": [7], "messages": asked("<image>?")}, "must be an image"),
        (
            {"images": ["photos/0.png"], "messages": [*asked("Hi."), *asked("<image>?")]},
            r"data\.turns=last",
        ),
    ],
)  # fmt: skip
def test_what_cannot_be_read_is_named(row: dict[str, Any], said: str, tmp_path: Path) -> None:
    save_pictures(tmp_path, [(40, 30)])
    with pytest.raises(DataError, match=said) as caught:
        read(tmp_path, {"messages": asked("First.")}, row)
    assert "line 2" in str(caught.value)


@pytest.mark.slow
@pytest.mark.parametrize("turns", ["last", "each"])
def test_an_image_later_in_a_conversation(turns: str, tmp_path: Path, llava: Path) -> None:
    [name] = save_pictures(tmp_path, [(40, 30)])
    row = {"images": [name], "messages": [*asked("Hi.", "Hello."), *asked("<image>?", "A dog.")]}
    groups = read(tmp_path, row, turns=turns)
    made = {
        g.completions[0][0]["content"]: t
        for g, t in zip(groups, tokenization(llava).groups(groups), strict=True)
    }
    token = tokenization(llava).tokenizer.convert_tokens_to_ids("<image>")
    counts = {
        answer: (int((t.prompt == token).sum()), len(images_of(t.meta)))
        for answer, t in made.items()
    }
    assert counts == {"A dog.": (4, 1), **({"Hello.": (0, 0)} if turns == "each" else {})}


def test_a_broken_picture_is_found_before_training(tmp_path: Path, llava: Path) -> None:
    names = save_pictures(tmp_path, [(40, 30), (40, 30)])
    whole = (tmp_path / names[1]).read_bytes()
    (tmp_path / names[1]).write_bytes(whole[: len(whole) // 2])
    rows = [{"images": [n], "messages": asked("<image>What?")} for n in names]
    data = source(write_rows(tmp_path / "rows.jsonl", rows), images=".", validation=0, test=0)
    with pytest.raises(DataError, match=r"rows.jsonl, line 2.*'images\[0\]'.*'photos/1.png'"):
        prepare(data, "sft", tokenization(llava), tmp_path / "cache", need="demonstration")


def test_pictures_tell_rows_apart(tmp_path: Path, llava: Path) -> None:
    names = save_pictures(tmp_path, [(40, 30), (40, 30)])
    rows = [{"images": [n], "messages": asked("<image>What?")} for n in names]
    groups = read(tmp_path, *rows)
    assert key_of(groups[0], None) != key_of(groups[1], None)  # else one split held both
    assert groups[0].id != groups[1].id
    tokens = tokenization(llava).groups(groups)
    assert tokens[0].prompt.tolist() == tokens[1].prompt.tolist()
    one, other = Chunk(groups, tokens, 0).prompt_keys  # what the gate calls the same row
    assert one != other


@pytest.mark.slow
def test_a_changed_picture_is_another_data_set(tmp_path: Path) -> None:
    names = save_pictures(tmp_path, [(40, 30)])
    path = write_rows(
        tmp_path / "rows.jsonl", [{"images": names, "messages": asked("<image>What?")}]
    )
    before = source(path, images=".").fingerprint()
    assert before == source(path, images=".").fingerprint()
    picture(5, 44, 30).save(tmp_path / names[0])
    assert before != source(path, images=".").fingerprint()


@pytest.mark.slow
def test_texts_alone_refuse_images_and_image_tokens(tmp_path: Path, llava: Path) -> None:
    [name] = save_pictures(tmp_path, [(40, 30)])
    [group] = read(tmp_path, {"images": [name], "messages": asked("<image>What?")})
    plain = Tokenization(AutoProcessor.from_pretrained(llava).tokenizer, 200, 50)
    with pytest.raises(DataError, match="reads texts only"):
        plain.groups([group])
    [text] = read(tmp_path, {"messages": asked("See <image>.")}, images="null")
    with pytest.raises(DataError, match="image mark without an image"):
        tokenization(llava).groups([text])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (("pipeline=sft", "backbone.path=random:tiny"), r"reads texts, and data\.images"),
        (("pipeline=instructgpt",), r"a reward|a ppo stage cannot use images yet"),
        (("pipeline=sft", "adapter=prompt"), "adapter=prompt is not for vision-language"),
    ],
)  # fmt: skip
def test_plans_refuse_what_cannot_see(
    overrides: tuple[str, ...], said: str, tmp_path: Path, llava: Path
) -> None:
    path = write_rows(tmp_path / "rows.jsonl", [{"messages": asked("Hi.")}])
    named = ["data=file", f"data.path={path}", "data.images=.", "backbone=hub"]
    config = compose([*named, f"backbone.path={llava}", *overrides])
    nodes = [(node, f"stages.{name}") for name, node in config["stages"].items()]
    with pytest.raises(ConfigError, match=said):
        _ = [build_stage(node, where) for node, where in nodes]


def test_old_keys_stay_as_they_were(tmp_path: Path) -> None:
    from alignlab import typed
    from alignlab.keys import key_of

    path = write_rows(tmp_path / "rows.jsonl", [{"messages": asked("Hi.")}])
    config = compose(["pipeline=sft", "data=file", f"data.path={path}", "backbone=tiny"])
    stage = build_stage(config["stages"]["sft"], "stages.sft")
    plain = typed.to_mapping(stage)
    earlier = {
        name: dict(value) if name in ("backbone", "data") else value
        for name, value in plain.items()
    }
    del earlier["backbone"]["vision"], earlier["data"]["images"]
    assert key_of(stage, plain, "", {}) == key_of(stage, earlier, "", {})


def test_image_features_of_datasets_are_read_undecoded(tmp_path: Path) -> None:
    from datasets import Dataset, Features, Image, List, Value

    from alignlab.data.rows.bad_rows import BadRows, InFile
    from alignlab.data.rows.tables import plain_rows
    from alignlab.data.sources.hub import _undecoded
    from alignlab.images import opened

    [name] = save_pictures(tmp_path, [(40, 30)])
    features = Features({"images": List(Image()), "prompt": Value("string")})
    row = {"images": [str(tmp_path / name)], "prompt": "<image>?"}
    table = Dataset.from_list([row], features=features)
    [(_, plain)] = plain_rows(map(dict, _undecoded(table)), InFile("", BadRows(), ""))
    from alignlab.data.formats.media import with_marks

    _, [image] = with_marks(plain, ["prompt"], tmp_path)
    assert np.array_equal(np.asarray(opened(image)), np.asarray(picture(0, 40, 30)))


def test_another_process_makes_the_same_tokens(tmp_path: Path, llava: Path) -> None:
    import pickle

    [name] = save_pictures(tmp_path, [(40, 30)])
    groups = read(tmp_path, {"images": [name], "messages": asked("<image>What?")})
    mine = tokenization(llava)
    theirs = pickle.loads(pickle.dumps(mine))
    assert mine.fingerprint() == theirs.fingerprint()
    [one], [other] = mine.groups(groups), theirs.groups(groups)
    assert one.prompt.tolist() == other.prompt.tolist()
