"""The images and labels of a replay, and the requests that carry them."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from jobs.protocols import Protocol, is_png, read_predict, read_v2, reader, refusal
from jobs.replay_images import Images, read
from jobs.replay_plan import requests
from jobs.replay_probe import Service, check_labels
from shifter.errors import DataError, RecipeError, ServiceError

PIXELS = np.arange(5 * 3 * 4 * 4).reshape(5, 3, 4, 4) % 256
SERVICE = Service(None, "net", (3, 4, 4))


def taken(path: Path, labels: Path | None = None, most: int = 100) -> Images:
    return read(path, labels, columns=("image", "label"), most=most, seed=0)


def encoded(colour: int, kind: str = "PNG", size: int = 4) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (size, size), (colour, 0, 0)).save(out, kind, lossless=True)
    return out.getvalue()


def folder(root: Path, **files: bytes) -> Path:
    for name, content in files.items():
        path = root / name.replace("__", "/").replace("_", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return root


def test_arrays_keep_their_labels_in_random_order(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", images=PIXELS, labels=np.arange(5))
    np.save(tmp_path / "a.npy", PIXELS)
    np.save(tmp_path / "labels.npy", np.arange(5))
    (tmp_path / "labels.txt").write_text("0\n1\n2\n3\n4\n")
    for found in (
        taken(tmp_path / "a.npz"),
        taken(tmp_path / "a.npy", tmp_path / "labels.npy"),
        taken(tmp_path / "a.npy", tmp_path / "labels.txt"),
    ):
        assert found.pixels is not None
        assert found.labels is not None
        assert np.array_equal(found.pixels, PIXELS[found.labels])
        assert sorted(found.labels) == list(range(5))
        assert found.labels.tolist() != list(range(5))
    few = taken(tmp_path / "a.npz", most=2)
    assert len(few) == 2
    assert taken(tmp_path / "a.npy").labels is None


def test_a_folder_names_its_classes_and_sends_files_as_they_are(tmp_path: Path) -> None:
    png, jpeg, webp = encoded(10), encoded(20, "JPEG"), encoded(30, "WEBP")
    root = folder(tmp_path / "set", dog__a_png=png, cat__b_jpg=jpeg, cat__deep__c_webp=webp, cat__x_txt=b"")
    found = taken(root)
    assert found.classes == ("cat", "dog")
    assert found.encoded is not None
    assert found.labels is not None
    by_file = dict(zip(found.encoded, found.labels.tolist(), strict=True))
    assert (by_file[png], by_file[jpeg], len(by_file)) == (1, 0, 3)
    third = next(file for file in by_file if file not in (png, jpeg))
    assert is_png(third)
    assert Image.open(io.BytesIO(third)).getpixel((0, 0)) == (30, 0, 0)
    (tmp_path / "names.txt").write_text("bird\ncat\ndog\n")
    named = taken(root, tmp_path / "names.txt")
    assert named.labels is not None
    assert sorted(named.labels.tolist()) == [1, 1, 2]


def test_parquet_is_read_as_the_training_reads_it(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    table = pyarrow.table({"img": [encoded(i) for i in range(9)], "what": list(range(9))})
    pyarrow.parquet.write_table(table, tmp_path / "p.parquet")
    for most in (4, 100):
        found = read(tmp_path / "p.parquet", None, columns=("img", "what"), most=most, seed=1)
        assert found.labels is not None
        assert len(found) == len(set(found.labels.tolist())) == min(most, 9)
        assert found.decoded(3)[:, 0, 0, 0].tolist() == found.labels.tolist()
    with pytest.raises(DataError, match="has no column 'image'; it has img, what"):
        taken(tmp_path / "p.parquet")


def test_what_does_not_fit_is_named(tmp_path: Path) -> None:
    np.savez(tmp_path / "other.npz", x=PIXELS)
    np.savez(tmp_path / "short.npz", images=PIXELS, labels=np.arange(4))
    np.savez(tmp_path / "minus.npz", images=PIXELS, labels=np.arange(5) - 1)
    np.savez(tmp_path / "flat.npz", images=PIXELS[0], labels=np.arange(3))
    np.save(tmp_path / "a.npy", PIXELS)
    (tmp_path / "words.txt").write_text("1\ncat\n")
    (tmp_path / "twice.txt").write_text("cat\ncat\n")
    (tmp_path / "cats.txt").write_text("cat\n")
    (tmp_path / "broken.npz").write_bytes(b"PK no")
    dogs = folder(tmp_path / "set", dog__a_png=encoded(1))
    bad = folder(tmp_path / "bad", dog__a_webp=b"no image")
    (tmp_path / "empty").mkdir()
    cases: list[tuple[Path, Path | None, str]] = [
        (tmp_path / "other.npz", None, "hold the arrays x: 'images'"),
        (tmp_path / "short.npz", None, r"of shape \(4,\), and there are 5 images"),
        (tmp_path / "minus.npz", None, "from -1 on"),
        (tmp_path / "flat.npz", None, r"shape \(3, 4, 4\): numbers of shape"),
        (tmp_path / "broken.npz", None, "are no .npz file"),
        (tmp_path / "gone.npz", None, "cannot be read: No such file"),
        (tmp_path / "gone.parquet", None, "there is no such file"),
        (tmp_path / "a.npy", tmp_path / "words.txt", "line 2: 'cat' is no whole number"),
        (tmp_path / "a.npy", tmp_path / "gone.txt", "labels .*gone.txt cannot be read"),
        (dogs, tmp_path / "twice.txt", "hold 'cat' twice"),
        (dogs, tmp_path / "cats.txt", "dog is none of the classes that --labels names: cat"),
        (tmp_path / "empty", None, "a folder without images"),
        (bad, None, "is no image that can be sent"),
    ]
    for path, labels, says in cases:
        with pytest.raises(DataError, match=says):
            taken(path, labels)


def test_labels_that_cannot_be_the_models_are_refused() -> None:
    known = Images(PIXELS, None, np.array([0, 1, 2, 3, 9]))
    check_labels(known, 10)
    with pytest.raises(DataError, match="the label 9, and the model has 9 classes, from 0 to 8"):
        check_labels(known, 9)
    with pytest.raises(DataError, match="of 2 classes, and the model has 10"):
        check_labels(Images(PIXELS, None, np.zeros(5, np.int64), ("a", "b")), 10)
    check_labels(Images(PIXELS, None, None), 2)


def made(images: Images, protocol: Protocol, service: Service = SERVICE, **more: Any) -> Any:
    return requests(images, service, protocol, **{"per_request": 1, "count": 100, **more})


def test_binary_tensors_carry_the_pixels_exactly() -> None:
    for pixels, datatype, kind in ((PIXELS, "UINT8", "u1"), (PIXELS / 8, "FP32", "<f4")):
        asked, sent = made(Images(pixels, None, None), Protocol.V2, per_request=2)
        assert asked[:3] == [(0, 1), (2, 3), (4, 0)]
        length = int(sent[1].headers["Inference-Header-Content-Length"])
        header, raw = json.loads(sent[1].body[:length]), sent[1].body[length:]
        tensor = header["inputs"][0]
        assert (tensor["name"], tensor["datatype"], tensor["shape"]) == ("images", datatype, [2, 3, 4, 4])
        assert tensor["parameters"]["binary_data_size"] == len(raw)
        assert np.array_equal(np.frombuffer(raw, kind).reshape(2, 3, 4, 4), pixels[2:4])
        assert sent[1].path == "/v2/models/net/infer"


def test_files_go_as_they_are_and_as_pixels_where_it_has_to_be() -> None:
    files = Images(None, [encoded(1), encoded(2, "JPEG")], np.array([0, 1]))
    _, sent = made(files, Protocol.PREDICT)
    assert [one.body for one in sent] == list(files.encoded or ())
    assert [one.headers["Content-Type"] for one in sent] == ["image/png", "image/jpeg"]
    for protocol, per_request in ((Protocol.PREDICT, 2), (Protocol.JSON, 1)):
        _, sent = made(files, protocol, per_request=per_request)
        assert np.array(json.loads(sent[0].body)["images"]).shape == (per_request, 3, 4, 4)
    assert files.decoded(1).shape == (2, 1, 4, 4)


def test_images_that_the_model_does_not_read_are_refused_before_anything_is_sent() -> None:
    with pytest.raises(DataError, match=r"of shape \(3, 4, 4\) .* net reads \(1, 8, 8\)"):
        made(Images(PIXELS, None, None), Protocol.JSON, Service(None, "net", (1, 8, 8)))
    two = Images(None, [encoded(1), encoded(2, size=9)], None)
    with pytest.raises(DataError, match=r"several sizes, \(3, 4, 4\) and \(3, 9, 9\) .* the service resizes"):
        made(two, Protocol.V2)
    with pytest.raises(ServiceError, match="give it with --model"):
        made(Images(PIXELS, None, None), Protocol.V2, Service(None, None, None))


def test_the_bytes_of_different_requests_are_bounded() -> None:
    images = Images(PIXELS, None, None)
    whole = made(images, Protocol.V2)[1]
    two = sum(len(one.body) for one in whole[:2])
    asked, sent = made(images, Protocol.V2, most_bytes=two)
    assert (asked, sent) == ([(0,), (1,)], whole[:2])
    with pytest.raises(RecipeError, match="larger than 10 bytes"):
        made(images, Protocol.V2, most_bytes=10)


def binary(shape: list[int], raw: bytes, name: str = "logits", datatype: str = "FP32") -> tuple[bytes, int]:
    output = {"name": name, "datatype": datatype, "shape": shape}
    classes = {"name": "classes", "datatype": "INT64", "shape": [2], "parameters": {"binary_data_size": 16}}
    header = json.dumps(
        {"outputs": [classes, {**output, "parameters": {"binary_data_size": len(raw)}}]}
    ).encode()
    return header + bytes(16) + raw, len(header)


def test_answers_of_both_protocols_are_read() -> None:
    logits = np.array([[1, 2, 3], [4, 5, 6]], np.float32)
    payload, length = binary([2, 3], logits.tobytes())
    assert np.array_equal(read_v2(payload, length, 2), logits)
    plain = {"outputs": [{"name": "logits", "datatype": "FP32", "shape": [2, 3], "data": logits.tolist()}]}
    assert np.array_equal(read_v2(json.dumps(plain).encode(), 0, 2), logits)
    predictions = {"predictions": [{"logits": row} for row in logits.tolist()]}
    assert np.array_equal(read_predict(json.dumps(predictions).encode(), 0, 2), logits)
    assert reader(Protocol.V2) is read_v2
    assert reader(Protocol.JSON) is reader(Protocol.PREDICT) is read_predict


@pytest.mark.parametrize(
    ("payload", "length", "read_it"),
    [
        (b"", 0, read_predict),
        (b"[]", 0, read_predict),
        (b'{"predictions": []}', 0, read_predict),
        (b'{"predictions": [{"logits": []}, {"logits": []}]}', 0, read_predict),
        (b'{"predictions": [{"logits": [1]}, {"logits": [1, 2]}]}', 0, read_predict),
        (b'{"predictions": [{"logits": [1]}, {"logits": [NaN]}]}', 0, read_predict),
        (b'{"outputs": []}', 0, read_v2),
        (b"\xff", 0, read_v2),
        (*binary([2, 3], bytes(20)), read_v2),
        (*binary([2, 3], bytes(24))[:1], 0, read_v2),
        (binary([2, 3], bytes(24))[0][:-9], binary([2, 3], bytes(24))[1], read_v2),
        (*binary([1, 6], bytes(24)), read_v2),
        (*binary([2, 3], bytes(24), datatype="FP64"), read_v2),
        (*binary([2, 3], bytes(24), name="other"), read_v2),
    ],
)
def test_what_is_no_answer_to_two_images_is_not_taken_for_one(payload: bytes, length: int, read_it) -> None:
    with pytest.raises((ValueError, KeyError, TypeError, IndexError)):
        read_it(payload, length, 2)


def test_refusals_alike_are_counted_as_one() -> None:
    first, second = (refusal(503, b'{"error": "%d wait: ask again in 1.5 s"}' % n) for n in (7, 12))
    assert first == second == "HTTP 503: N wait: ask again in N s"
    assert refusal(502, b"") == "HTTP 502"
    assert refusal(500, b"\x1b[2J bad\n gateway") == "HTTP 500: ?[NJ bad gateway"
    assert len(refusal(400, b"x" * 9999)) < 150
    assert refusal(422, b'{"error": "7 pixels"}', keep_numbers=True) == "HTTP 422: 7 pixels"
