"""config/mosquitto with a real mosquitto: who may say and hear what."""

from collections.abc import Iterator

import pytest

from connectors.contract import CHANNELS, Topics
from tests.broker import wait_for
from tests.shipped_broker import ShippedBroker, User

TOPICS = Topics("aprilcam")
DAEMONS = (
    *(
        channel.address.format(prefix="aprilcam", station="press", result_id="0199", command="trigger")
        for name, channel in CHANNELS.items()
        if name != "command"
    ),
    TOPICS.reply("press") + "/bench-1",
)
COMMAND = TOPICS.command("press", "trigger")


@pytest.fixture(scope="module")
def shipped(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ShippedBroker]:
    broker = ShippedBroker(tmp_path_factory.mktemp("broker") / "mosquitto")
    yield broker
    broker.kill()


@pytest.mark.parametrize("protocol", ["5", "3.1.1"])
def test_each_may_say_and_hear_what_its_role_needs_and_no_more(shipped: ShippedBroker, protocol: str) -> None:
    daemon, scada, engineer, guest = (
        User(shipped, name, protocol, will=TOPICS.status if name == "daemon" else None)
        for name in ("daemon", "scada", "engineer", "guest")
    )
    daemon.subscribe(TOPICS.command("+", "+"))
    for user in (scada, engineer, guest):
        user.subscribe("#")
    for topic in DAEMONS:
        daemon.say(topic, b"daemon")
    wait_for(lambda: len(scada.heard) >= len(DAEMONS), "what the daemon says")
    wait_for(lambda: len(engineer.heard) >= len(DAEMONS), "what the daemon says")
    # What nobody but its owner may say, and then what each may: the broker delivers in order.
    for user in (scada, engineer, guest):
        for topic in DAEMONS:
            user.say(topic, b"forged")
    for user in (daemon, scada, guest):
        user.say(COMMAND, b"forged")
    engineer.say(COMMAND, b"engineer")
    daemon.say("elsewhere/status", b"forged")
    daemon.say(TOPICS.status, b"the last")
    for user in (scada, engineer):
        wait_for(lambda user=user: user.heard[-1].payload == b"the last", "the last message")  # type: ignore[misc]
        said = {(heard.topic, heard.payload) for heard in user.heard if not heard.retained}
        assert said == {*((topic, b"daemon") for topic in DAEMONS), (COMMAND, b"engineer"), (TOPICS.status, b"the last")}
    assert [(heard.topic, heard.payload) for heard in daemon.heard] == [(COMMAND, b"engineer")]
    assert guest.heard == []
    daemon.vanish()
    wait_for(lambda: scada.heard[-1].payload == b"will", "the will")
    for user in (scada, engineer, guest):
        user.close()


@pytest.mark.parametrize("protocol", ["5", "3.1.1"])
def test_who_has_no_name_or_a_wrong_password_does_not_come_in(shipped: ShippedBroker, protocol: str) -> None:
    nobody = User(shipped, None, protocol)
    assert nobody.refused
    nobody.close()
    right, shipped.passwords["scada"] = shipped.passwords["scada"], "wrong"
    wrong = User(shipped, "scada", protocol)
    shipped.passwords["scada"] = right
    assert wrong.refused
    wrong.close()
