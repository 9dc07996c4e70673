"""config/schema.py: what a configuration may hold, and how a wrong one is told."""

import tomllib
from pathlib import Path
from typing import Any

import pytest

from config.errors import ConfigError
from config.schema import AravisCamera, Config, FolderCamera, PylonCamera, Section, load_config

EXAMPLE = Path(__file__).parent.parent / "config" / "aprilcam.example.toml"
GOOD = """
[[cameras]]
name = "cam"
driver = "folder"
path = "pictures"
[[recipes]]
name = "gear"
object = "metal gear"
[[stations]]
name = "press"
camera = "cam"
recipe = "gear"
"""


def load(tmp_path: Path, text: str) -> Config:
    file = tmp_path / "aprilcam.toml"
    file.write_text(text)
    return load_config(file)


def problems(tmp_path: Path, text: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, text)
    assert caught.value.path == (tmp_path / "aprilcam.toml").resolve()
    return [str(problem) for problem in caught.value.problems]


def test_relative_paths_start_at_the_folder_of_the_file(tmp_path: Path) -> None:
    camera = load(tmp_path, GOOD).cameras[0]
    assert isinstance(camera, FolderCamera)
    assert camera.path == tmp_path.resolve() / "pictures"


@pytest.mark.parametrize(
    ("old", "new", "key", "words"),
    [
        ('name = "press"', 'name = "press"\nqueue = 3', "stations.0.queue", "unknown key. Did you mean queue_frames?"),
        ('object = "metal gear"', "object = 3", "recipes.0.object", "valid string. Got 3 of type int"),
        ('object = "metal gear"', "", "recipes.0.object", "missing. Add it"),
        ('camera = "cam"', 'camera = "kam"', "stations.0.camera", "no camera is named 'kam'. Known: cam"),
        ('recipe = "gear"', 'recipe = "cog"', "stations.0.recipe", "no recipe is named 'cog'. Known: gear"),
        ('name = "press"', 'name = "a/b"', "stations.0.name", "'a/b' cannot be a name"),
        ('driver = "folder"', 'driver = "usb"', "cameras.0.driver", 'Use driver = "pylon"'),
        ('object = "metal gear"', 'object = "x"\nthreshold = inf', "recipes.0.threshold", "finite number"),
        (
            'path = "pictures"',
            'path = "pictures"\nsilent_after_s = 0.1',
            "cameras.0.silent_after_s",
            "or equal to 0.75",
        ),
        ("[[cameras]]", '[http]\nhost = ""\n[[cameras]]', "http.host", "at least 1 character"),
        (
            'driver = "folder"\npath = "pictures"',
            'driver = "pylon"\nserial = "1"\nfeatures = { A = [1] }',
            "cameras.0.features.A",
            "not [1]",
        ),
        ('path = "pictures"', 'path = "pictures"\nrate_hz = 0.0', "cameras.0.rate_hz", "greater than 0"),
        ('object = "metal gear"', 'object = "x"\nshots = "none"', "recipes.0.shots", "is not a folder. Make it"),
        ("[[cameras]]", "[mqtt]\nprefix = 'a/#'\n[[cameras]]", "mqtt.prefix", "match pattern"),
        ("[[cameras]]", "[sparkplug]\ngroup_id = 'a/b'\nedge_node_id = 'n'\n[[cameras]]", "sparkplug.group_id", "match pattern"),
        ("[[cameras]]", "[sparkplug]\ngroup_id = 'STATE'\nedge_node_id = 'n'\n[[cameras]]", "sparkplug.group_id", "where host"),
        (
            "[[cameras]]",
            "[sparkplug]\ngroup_id = 'g'\nedge_node_id = 'n'\nclient_id = 'aprilcam'\n[[cameras]]",
            "sparkplug.client_id",
            "a broker drops one of two",
        ),
        ("[[cameras]]", "[http]\ntoken_file = 'none'\n[[cameras]]", "http.token_file", "is not a file. Write a long random"),
        ('object = "metal gear"', 'object = "x"\ndrop = "none"', "recipes.0.drop", "is not a folder. Make it"),
        ('object = "metal gear"', 'object = "x"\nshots = "."\ndrop = "."', "recipes.0.drop", "reads its shots. Give it"),
        ("[[cameras]]", "[mqtt]\nusername = 'x'\npassword_file = 'none'\n[[cameras]]", "mqtt.password_file", "is not a file"),
        ("[[cameras]]", "[http]\ntoken_file = 'credential:a/b'\n[[cameras]]", "http.token_file", "cannot be the name of a cred"),
        ("[[cameras]]", "[mqtt.tls]\nca_file = 'none'\n[[cameras]]", "mqtt.tls.ca_file", "is not a file. Correct the path"),
        ("[[cameras]]", "[mqtt.tls]\ncafile = 'x'\n[[cameras]]", "mqtt.tls.cafile", "unknown key. Did you mean ca_file?"),
        ("[[cameras]]", "[mqtt.tls]\nkey_file = 'aprilcam.toml'\n[[cameras]]", "mqtt.tls.key_file", "without a certificate"),
    ],
)
def test_a_wrong_key_is_told_once_with_key_reason_and_mend(tmp_path: Path, old: str, new: str, key: str, words: str) -> None:
    assert GOOD.count(old) == 1 or old == "[[cameras]]"
    [problem] = problems(tmp_path, GOOD.replace(old, new))
    assert problem.startswith(f"{key}: ")
    assert words in problem


def test_names_used_twice_are_told(tmp_path: Path) -> None:
    twice = GOOD + GOOD
    told = problems(tmp_path, twice)
    assert [problem.split(":")[0] for problem in told] == [
        "cameras.1.name",
        "recipes.1.name",
        "stations.1.name",
        "stations.1.camera",
    ]
    assert "camera 'cam' is already the name of cameras.0" in told[0]


@pytest.mark.parametrize(
    ("section", "port"),
    [("", 1883), ("[mqtt.tls]", 8883), ("[mqtt]\nport = 1884", 1884), ("[mqtt]\nport = 1884\n[mqtt.tls]", 1884)],
)
def test_with_tls_the_port_is_another_unless_it_is_given(tmp_path: Path, section: str, port: int) -> None:
    assert load(tmp_path, f"{section}\n{GOOD}").mqtt.port == port


def test_a_credential_is_where_systemd_puts_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = f"[mqtt]\nusername = 'x'\npassword_file = 'credential:mqtt-password'\n{GOOD}"
    monkeypatch.delenv("CREDENTIALS_DIRECTORY", raising=False)
    # Who checks the file while the daemon does not run sees no credential, and that is no fault.
    assert load(tmp_path, text).mqtt.password_file == Path("/run/credentials/aprilcam.service/mqtt-password")
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    assert "mqtt.password_file" in problems(tmp_path, text)[0]
    (tmp_path / "mqtt-password").write_text("secret")
    assert load(tmp_path, text).mqtt.password_file == tmp_path / "mqtt-password"


@pytest.mark.parametrize(
    ("selectors", "well"),
    [("", False), ('serial = "1"', True), ('serial = "1"\nip = "10.0.0.1"', False), ('ip = "10.0.0"', False)],
)
def test_a_pylon_camera_is_named_in_exactly_one_way(tmp_path: Path, selectors: str, well: bool) -> None:
    text = GOOD.replace('driver = "folder"\npath = "pictures"', f'driver = "pylon"\n{selectors}')
    if well:
        assert isinstance(load(tmp_path, text).cameras[0], PylonCamera)
    else:
        assert problems(tmp_path, text)[0].startswith("cameras.0")


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ("", "exactly one of serial and ip"),
        ('serial = "1"\nip = "10.0.0.1"', "exactly one of serial and ip"),
        ('ip = "10.0.0"', "10.0.0"),
        ('serial = "1"\nuser_name = "left"', "unknown key"),
        ('serial = "1"\ntrigger = "line9"', "'line1'"),
        (
            'serial = "1"\ntrigger_activation = "rising_edge"',
            'belongs to an input, as trigger = "line1", and trigger is "free_run"',
        ),
        ('serial = "1"\ntrigger = "software"\ndebounce_us = 5.0', "debounce_us belongs to an input"),
        ('serial = "1"\ntrigger_delay_us = 5.0', "trigger_delay_us needs a trigger"),
    ],
)
def test_an_aravis_camera_is_told_what_is_wrong(tmp_path: Path, keys: str, words: str) -> None:
    [problem] = problems(tmp_path, GOOD.replace('driver = "folder"\npath = "pictures"', f'driver = "aravis"\n{keys}'))
    assert problem.startswith("cameras.0")
    assert words in problem


@pytest.mark.parametrize(("content", "reason"), [(b"a = [", "not TOML"), (b"\xff\xfe", "not UTF-8"), (None, "no such file")])
def test_a_file_that_cannot_be_read_is_told(tmp_path: Path, content: bytes | None, reason: str) -> None:
    file = tmp_path / "aprilcam.toml"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(ConfigError, match=reason):
        load_config(file)


def test_an_empty_file_is_told_what_it_lacks(tmp_path: Path) -> None:
    assert [problem.split(":")[0] for problem in problems(tmp_path, "")] == ["cameras", "recipes", "stations"]


def test_every_frame_counts_at_triggered_stations_unless_configured(tmp_path: Path) -> None:
    def every(camera: str, station: str) -> bool:
        text = GOOD.replace('driver = "folder"\npath = "pictures"', camera).replace(
            'recipe = "gear"', f'recipe = "gear"\n{station}'
        )
        config = load(tmp_path, text)
        return config.takes_every_frame(config.stations[0])

    pylon = 'driver = "pylon"\nserial = "1"\n'
    assert every(pylon + 'trigger = "line1"', "")
    assert not every(pylon, "")
    assert every(pylon, 'frames = "every"')
    assert not every(pylon + 'trigger = "line1"', 'frames = "newest"')


def keys(model: type[Section]) -> set[str]:
    return set(model.model_fields)


def test_the_example_is_valid_and_shows_every_key(tmp_path: Path) -> None:
    text = EXAMPLE.read_text()
    document: dict[str, Any] = tomllib.loads(text)
    (tmp_path / "shots" / "gear").mkdir(parents=True)
    (tmp_path / "drop" / "gear").mkdir(parents=True)
    (tmp_path / "password").write_text("x")
    for secret in ("mqtt-password", "http-token", "http-users", "ca.pem", "daemon.pem", "daemon.key-password", "daemon.key"):
        text = text.replace(f'"/etc/aprilcam/{secret}"', f'"{tmp_path}/password"')
    config = load(tmp_path, text)

    assert keys(Config) == set(document)
    for table in ("store", "mqtt", "sparkplug", "http", "inference", "archive"):
        assert keys(type(getattr(config, table))) == set(document[table])
    assert keys(type(config.mqtt.tls)) == set(document["mqtt"]["tls"])  # type: ignore[arg-type]
    commented = {line.split("=")[0].strip("# ") for line in text.splitlines() if line.startswith("# ") and "=" in line}
    pylon, aravis, folder = document["cameras"]
    assert keys(PylonCamera) == set(pylon) | (commented & keys(PylonCamera))
    assert set(aravis) | commented >= keys(AravisCamera) - keys(PylonCamera)
    assert keys(FolderCamera) == set(folder)
    assert keys(type(config.recipes[0])) == set(document["recipes"][0])
    assert keys(type(config.recipes[0].region)) == set(document["recipes"][0]["region"])  # type: ignore[arg-type]
    assert keys(type(config.stations[0])) == set(document["stations"][0])
