"""A strategy goes to a hub and comes back; the hub is a server of this process."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import safetensors.torch
import torch

from avalanche_rwf import RoutedViT, RwFStrategy, UsageError
from avalanche_rwf.strategies.hub import FILES

hub = pytest.importorskip("huggingface_hub")

COMMIT = "a" * 40


class Hub(BaseHTTPRequestHandler):
    """Repositories of small files: made, committed to, read."""

    files: dict[str, bytes] = {}
    asked: list[str] = []

    def log_message(self, *args):
        pass

    def answer(self, value, headers=(), status=200):
        data = value if isinstance(value, bytes) else json.dumps(value).encode()
        self.send_response(status)
        for name, text in (("Content-Length", str(len(data))), *headers):
            self.send_header(name, text)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.asked.append(self.path)
        base = f"http://{self.headers['Host']}"
        if self.path == "/api/repos/create":
            assert self.headers["Authorization"] == "Bearer secret"
            self.answer({"url": f"{base}/me/it", "id": "me/it"})
        elif "/preupload/" in self.path:
            files = [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False}
                     for f in json.loads(body)["files"]]  # fmt: skip
            self.answer({"files": files})
        elif "/commit/" in self.path:
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    value = line["value"]
                    self.files[value["path"]] = base64.b64decode(value["content"])
            self.answer({"commitUrl": f"{base}/me/it/commit/{COMMIT}", "commitOid": COMMIT})
        else:
            self.answer({}, status=200)

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        name = self.path.rpartition("/")[2]
        if self.path.startswith("/me/it/resolve/") and name in self.files:
            data = self.files[name]
            etag = f'"{hashlib.sha256(data).hexdigest()}"'
            self.answer(data, (("ETag", etag), ("X-Repo-Commit", COMMIT)))
        else:
            code = (("X-Error-Code", "RepoNotFound"), ("X-Error-Message", "Repository not found"))
            self.answer(b"", code, status=404)


@pytest.fixture
def server(monkeypatch, tmp_path):
    Hub.files, Hub.asked = {}, []
    with ThreadingHTTPServer(("127.0.0.1", 0), Hub) as http:
        threading.Thread(target=http.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{http.server_port}"
        # HF_ENDPOINT is read when the package is imported.
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", address)
        template = address + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
        yield Hub
        http.shutdown()


@pytest.fixture
def trained(tools, scenario):
    """The packaged backbone, a stream of noise."""
    torch.manual_seed(0)
    strategy = RwFStrategy(num_classes=None, num_prompts=2, evaluator=tools.silent())
    strategy.train(scenario.train_stream[0], shuffle=False)
    return strategy


def assert_same(a, b):
    for (name, x), y in zip(a.model.state_dict().items(), b.model.state_dict().values(),
                            strict=True):  # fmt: skip
        assert torch.equal(x, y), name


def test_a_strategy_is_pushed_and_comes_back(server, trained, tools, scenario):
    where = trained.push_to_hub("me/it", metrics={"a_last": 0.5, "a_auc": None}, token="secret")
    assert where.endswith(f"/me/it/commit/{COMMIT}")
    assert set(server.files) == set(FILES)
    card = server.files["README.md"].decode()
    assert "| a_last | 0.5000 |" in card and "library_name: avalanche-rwf" in card
    torch.rand(7)
    again = RwFStrategy.from_pretrained("me/it", evaluator=tools.silent())
    assert_same(trained, again)
    images = torch.randn(4, 3, 32, 32)
    assert torch.equal(trained.predict(images), again.predict(images))
    assert again.clock.train_iterations == trained.clock.train_iterations
    again.train(scenario.train_stream[1], shuffle=False)  # it goes on, with another optimizer


def test_no_backbone_and_no_pickle_is_uploaded(server, trained):
    trained.push_to_hub("me/it", token="secret")
    tensors = safetensors.torch.load(server.files["model.safetensors"])
    assert tensors and not [name for name in tensors if name.startswith("backbone.")]
    assert json.loads(server.files["config.json"])["backbone"]["source"] == "packaged"


def test_an_unknown_repository_is_named(server):
    with pytest.raises(UsageError, match=r"repository of the hub, and 'me/none' cannot be read"):
        RwFStrategy.from_pretrained("me/none")


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda c: c.update({"class": "Other"}), "is no RwFStrategy of this version"),
        (lambda c: c.update(format=2), "is no RwFStrategy of this version"),
        (lambda c: c["arguments"].update(num_prompts=3), "does not fit: .*size mismatch"),
        (lambda c: c["arguments"].update(surprise=3), "does not fit: .*surprise"),
        (lambda c: c["backbone"].update(sha256="0" * 64), "backbone's weights are 0000000000"),
        (lambda c: c["arguments"].update(backbone_kwargs={"checkpoint_path": "/etc/passwd"}),
         "takes numbers, and checkpoint_path is none"),
        (lambda c: c["arguments"].update(weights="/etc/passwd"), None),
        (lambda c: c["backbone"].update(source="file"), "weights must be given"),
        (lambda c: c.update(arguments={}), "model must be given"),
    ],
)  # fmt: skip
def test_files_that_anybody_wrote_are_checked(damage, said, trained, tools, tmp_path):
    trained.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    damage(config)
    (tmp_path / "config.json").write_text(json.dumps(config))
    if said is None:  # a path in the file is not opened
        assert_same(RwFStrategy.from_pretrained(tmp_path, evaluator=tools.silent()), trained)
        return
    with pytest.raises(UsageError, match=said):
        RwFStrategy.from_pretrained(tmp_path, evaluator=tools.silent())


@pytest.mark.parametrize("file", FILES[:2])
def test_a_damaged_file_is_refused(file, trained, tmp_path):
    trained.save_pretrained(tmp_path)
    (tmp_path / file).write_bytes((tmp_path / file).read_bytes()[:50])
    with pytest.raises(UsageError, match="is damaged"):
        RwFStrategy.from_pretrained(tmp_path)


def test_a_model_of_ones_own_is_given_again(vit, tools, scenario, tmp_path):
    def build():
        torch.manual_seed(0)
        return RoutedViT(vit, 6, routed_blocks="all")

    strategy = RwFStrategy(model=build(), evaluator=tools.silent())
    strategy.train(scenario.train_stream[0], shuffle=False)
    strategy.save_pretrained(tmp_path)
    again = RwFStrategy.from_pretrained(tmp_path, model=build(), evaluator=tools.silent())
    assert_same(strategy, again)
