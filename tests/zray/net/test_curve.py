"""Cluster keys on disk: whose they are, who may read them, and how they change.

What    Modes, refusals with their reasons, rotation step by step, what a client's folder lacks.
Caller  pytest.
Never   opens a port.
"""

import json
import os
import stat

import pytest

from zray.errors import SecurityError
from zray.net.curve import ClusterKeys, Role, default_directory, make_pair


def _mode(path) -> int:
    return stat.S_IMODE(os.stat(path).st_mode)


@pytest.fixture
def keys(tmp_path):
    return ClusterKeys.create(str(tmp_path / "keys"))


def _file(keys) -> str:
    return os.path.join(keys.directory, "keys.json")


def test_new_keys_are_readable_by_their_owner_only_whatever_the_umask(tmp_path):
    before = os.umask(0)
    try:
        keys = ClusterKeys.create(str(tmp_path / "keys"))
        keys.add(Role.NODE)
    finally:
        os.umask(before)
    assert _mode(keys.directory) == 0o700
    assert {name: _mode(os.path.join(keys.directory, name)) for name in os.listdir(keys.directory)}
    assert all(_mode(each) == 0o600 for each in (tmp_path / "keys").iterdir())


def test_every_role_has_a_pair_of_its_own_and_is_a_member(keys):
    pairs = {role: keys.pair(role) for role in Role}
    assert len({pair.public for pair in pairs.values()}) == 3
    assert {role: keys.role_of(pair.public) for role, pair in pairs.items()} == {r: r for r in Role}
    assert keys.server_keys() == [pairs[Role.NODE].public]
    assert keys.role_of(make_pair().public) is None


def test_a_secret_is_in_no_representation(keys):
    pair = keys.pair(Role.NODE)
    assert pair.secret.decode() not in repr(pair)
    assert pair.secret.decode() not in repr(keys) + str(vars(keys))


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o660])
def test_a_file_open_to_others_is_refused_with_the_remedy(keys, mode):
    os.chmod(_file(keys), mode)
    with pytest.raises(SecurityError, match=r"keys\.json is open to others .*chmod 0600"):
        ClusterKeys.load(keys.directory)


def test_a_folder_open_to_others_is_refused(keys):
    os.chmod(keys.directory, 0o750)
    with pytest.raises(SecurityError, match=r"open to others .*chmod 0700"):
        ClusterKeys.load(keys.directory)
    with pytest.raises(SecurityError, match="open to others"):
        ClusterKeys.create(keys.directory)


def test_a_folder_without_keys_says_where_to_get_them(tmp_path):
    for path in (tmp_path, tmp_path / "nothing"):
        os.chmod(tmp_path, 0o700)
        with pytest.raises(SecurityError, match="zray-node keygen"):
            ClusterKeys.load(str(path))


def test_keys_are_never_overwritten(keys, tmp_path):
    with pytest.raises(SecurityError, match="already"):
        ClusterKeys.create(keys.directory)
    with pytest.raises(SecurityError, match="already"):
        keys.export(keys.directory, Role.CLIENT)


def _broken(plain, how):
    if how == "format":
        plain["format"] = 2
    elif how == "role":
        plain["members"][0]["role"] = "king"
    elif how == "short key":
        plain["members"][0]["public"] = "abc"
    elif how == "key out of range":
        plain["members"][0]["public"] = "#" * 40
    elif how == "foreign secret":
        plain["pairs"]["node"][0]["secret"] = make_pair().secret.decode()
    elif how == "no members":
        del plain["members"]
    elif how == "list":
        return []
    return plain


@pytest.mark.parametrize(
    "how",
    ["format", "role", "short key", "key out of range", "foreign secret", "no members", "list"],
)
def test_a_file_that_says_something_else_is_refused_and_the_old_table_stays(keys, how):
    member = keys.pair(Role.CLIENT).public
    with open(_file(keys)) as file:
        plain = json.load(file)
    with open(_file(keys), "w") as file:
        json.dump(_broken(plain, how), file)
    with pytest.raises(SecurityError):
        ClusterKeys.load(keys.directory)
    with pytest.raises(SecurityError):
        keys.reload()
    with pytest.raises(SecurityError):
        keys.reload()  # Not only the first time.
    assert keys.role_of(member) is Role.CLIENT


def test_half_a_file_is_refused(keys):
    with open(_file(keys), "r+") as file:
        file.truncate(100)
    with pytest.raises(SecurityError, match="no file of cluster keys"):
        ClusterKeys.load(keys.directory)


def test_another_process_sees_a_change_when_it_asks(keys):
    elsewhere = ClusterKeys.load(keys.directory)
    assert not elsewhere.reload()
    stranger = make_pair().public
    keys.admit(stranger, Role.GATEWAY)
    assert elsewhere.role_of(stranger) is None
    assert elsewhere.reload()
    assert elsewhere.role_of(stranger) is Role.GATEWAY
    assert elsewhere.revision == 1
    assert not elsewhere.reload()


def test_what_is_admitted_must_be_a_key(keys):
    with pytest.raises(SecurityError, match="Z85"):
        keys.admit(b"x" * 39, Role.CLIENT)


@pytest.mark.parametrize("role", list(Role))
def test_a_rotation_has_three_steps_and_the_old_key_opens_nothing_after_the_last(keys, role):
    old = keys.pair(role)
    new = keys.add(role)
    assert keys.pair(role) == old
    assert {keys.role_of(old.public), keys.role_of(new.public)} == {role}
    assert keys.activate(role) == new
    assert keys.pair(role) == new
    assert {keys.role_of(old.public), keys.role_of(new.public)} == {role}
    if role is Role.NODE:
        assert keys.server_keys() == [new.public, old.public]
    assert keys.retire(role) == [old.public]
    assert keys.role_of(old.public) is None
    assert keys.role_of(old.public, retired=True) is role
    keys.revoke(old.public)
    assert keys.role_of(old.public, retired=True) is None
    assert keys.pair(role) == new


def test_a_revoked_key_is_not_used_either(keys):
    keys.revoke(keys.pair(Role.GATEWAY).public)
    with pytest.raises(SecurityError, match="no gateway key"):
        keys.pair(Role.GATEWAY)


def test_a_clients_folder_has_its_own_secret_and_no_other(keys, tmp_path):
    folder = keys.export(str(tmp_path / "client"), Role.CLIENT)
    assert folder.pair(Role.CLIENT) == keys.pair(Role.CLIENT)
    assert folder.server_keys() == keys.server_keys()
    for role in (Role.NODE, Role.GATEWAY):
        with pytest.raises(SecurityError, match=f"no {role} key"):
            folder.pair(role)
        with open(_file(folder)) as file:
            assert keys.pair(role).secret.decode() not in file.read()
    assert _mode(folder.directory) == 0o700
    assert _mode(_file(folder)) == 0o600


def test_keys_lie_below_the_home_of_the_user(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert default_directory() == str(tmp_path / ".zray" / "cluster")
    assert ClusterKeys.create().directory == default_directory()
