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
from zray.net import key_files, roster
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
        plain["format"] = 1
    elif how == "role":
        plain["roster"]["keys"][0][2] = "king"
    elif how == "short key":
        plain["roster"]["keys"][0][0] = "abc"
    elif how == "key out of range":
        plain["roster"]["keys"][0][0] = "#" * 40
    elif how == "foreign secret":
        plain["own"]["node"]["pairs"][0][1] = make_pair().secret.decode()
    elif how == "no list":
        del plain["roster"]
    elif how == "a key twice":
        plain["roster"]["keys"].append(plain["roster"]["keys"][0])
    elif how == "two roles":
        plain["roster"]["keys"][0][1] = "client"
    elif how == "list":
        return []
    return plain


@pytest.mark.parametrize(
    "how",
    [
        "format",
        "role",
        "short key",
        "key out of range",
        "foreign secret",
        "no list",
        "a key twice",
        "two roles",
        "list",
    ],
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


# -- members of their own --------------------------------------------------------------------------


def _told(keys, member):
    """Bring the list of the authority to another member, as links do."""
    return member.adopt(keys.roster.plain(), keys.pair(Role.NODE).public)


def test_each_member_has_a_key_of_its_own_and_can_be_shut_out_alone(keys, tmp_path):
    one = keys.issue("one", Role.NODE, str(tmp_path / "one"))
    two = keys.issue("two", Role.NODE, str(tmp_path / "two"))
    shown = {each.pair(Role.NODE).public for each in (keys, one, two)}
    assert len(shown) == 3
    assert set(keys.server_keys()) == shown
    assert _mode(two.directory) == 0o700
    assert _mode(_file(two)) == 0o600
    lost = one.pair(Role.NODE).public
    assert keys.revoke("one") == [lost]
    assert keys.role_of(lost, retired=True) is None
    assert keys.is_revoked(lost)
    assert keys.member_of(lost) == "one"
    assert keys.role_of(two.pair(Role.NODE).public) is Role.NODE
    assert lost not in keys.server_keys()
    with pytest.raises(SecurityError, match="no key or member that counts"):
        keys.revoke("one")


def test_a_change_reaches_others_by_the_word_of_the_authority_alone(keys, tmp_path):
    one = keys.issue("one", Role.NODE, str(tmp_path / "one"))
    two = keys.issue("two", Role.NODE, str(tmp_path / "two"))
    key = two.pair(Role.NODE).public
    assert one.role_of(key) is None
    assert not two.adopt(keys.roster.plain(), keys.pair(Role.NODE).public), "it is no news"
    for sender in (key, one.pair(Role.NODE).public, make_pair().public, b""):
        with pytest.raises(SecurityError, match="who may not change it"):
            one.adopt(keys.roster.plain(), sender)
    assert _told(keys, one)
    assert one.role_of(key) is Role.NODE
    assert ClusterKeys.load(one.directory).role_of(key) is Role.NODE, "it is kept"
    older = keys.roster.plain()
    keys.revoke("two")
    assert _told(keys, one)
    assert not one.adopt(older, keys.pair(Role.NODE).public)
    assert one.is_revoked(key), "an older list brings nobody back"


def test_a_list_of_another_cluster_is_none_of_ours(keys, tmp_path):
    one = keys.issue("one", Role.NODE, str(tmp_path / "one"))
    other = ClusterKeys.create(str(tmp_path / "other"))
    with pytest.raises(SecurityError, match="another cluster"):
        one.adopt(other.roster.plain(), keys.pair(Role.NODE).public)


@pytest.mark.parametrize("plain", [None, [], {}, 7, {"cluster": "c"}, {"keys": [[]]}])
def test_what_is_no_list_is_refused(keys, plain):
    with pytest.raises(SecurityError, match="no list of keys"):
        keys.adopt(plain, keys.pair(Role.NODE).public)


def test_a_list_from_memory_outlives_an_older_file(keys, tmp_path):
    """The folder may be read-only: then the list is kept for as long as the process lives."""
    one = keys.issue("one", Role.NODE, str(tmp_path / "one"))
    with open(_file(one)) as file:
        before = file.read()
    keys.admit(make_pair().public, Role.CLIENT, "laptop")
    assert _told(keys, one)
    with open(_file(one), "w") as file:
        file.write(before)
    assert one.reload()
    assert one.roster.version == keys.roster.version


def test_keys_are_changed_in_one_place(keys, tmp_path):
    one = keys.issue("one", Role.NODE, str(tmp_path / "one"))
    for change in (
        lambda: one.add(Role.NODE),
        lambda: one.revoke("head"),
        lambda: one.issue("two", Role.NODE, str(tmp_path / "two")),
        lambda: one.admit(make_pair().public, Role.NODE),
    ):
        with pytest.raises(SecurityError, match="changed on the head"):
            change()


def test_the_head_does_not_shut_itself_out(keys):
    for who in ("head", keys.pair(Role.NODE).public):
        with pytest.raises(SecurityError, match="activate another key of it first"):
            keys.revoke(who)
    old = keys.pair(Role.NODE).public
    keys.add(Role.NODE)
    keys.activate(Role.NODE)
    assert keys.revoke(old) == [old]
    assert keys.server_keys() == [keys.pair(Role.NODE).public]


def test_a_member_gets_a_new_key_and_its_old_one_is_retired(keys, tmp_path):
    first = keys.issue("one", Role.NODE, str(tmp_path / "first")).pair(Role.NODE).public
    second = keys.issue("one", Role.NODE, str(tmp_path / "second")).pair(Role.NODE).public
    assert keys.server_keys([first]) == keys.server_keys([second]) == [second, first]
    assert keys.retire("one") == [first]
    assert keys.server_keys([first]) == [second]
    assert keys.retire("one") == []
    with pytest.raises(SecurityError, match="no key that counts"):
        keys.retire("nobody")


@pytest.mark.parametrize("name", ["", "a b", "x" * 65, "-n", "../up", "node", "gateway", "client"])
def test_a_name_that_is_none_is_refused(keys, tmp_path, name):
    with pytest.raises(SecurityError):
        keys.issue(name, Role.NODE, str(tmp_path / "made"))
    assert not (tmp_path / "made").exists()


def test_a_name_has_one_role(keys, tmp_path):
    keys.issue("one", Role.CLIENT, str(tmp_path / "one"))
    with pytest.raises(SecurityError, match="one is a client already"):
        keys.issue("one", Role.NODE, str(tmp_path / "again"))


def test_a_list_that_is_full_forgets_those_that_count_no_more(keys, monkeypatch):
    monkeypatch.setattr(roster, "KEYS_MAX", 5)
    stranger = make_pair().public
    keys.admit(stranger, Role.CLIENT, "gone")
    keys.revoke("gone")
    for number in range(2):
        keys.admit(make_pair().public, Role.CLIENT, f"client-{number}")
    assert keys.role_of(stranger, retired=True) is None
    with pytest.raises(SecurityError, match="at most 5 keys"):
        keys.admit(make_pair().public, Role.CLIENT, "one-more")


def test_a_key_that_was_listed_once_is_not_listed_again(keys):
    key = make_pair().public
    keys.admit(key, Role.NODE, "stolen")
    keys.revoke("stolen")
    with pytest.raises(SecurityError, match="listed already: revoked, of stolen"):
        keys.admit(key, Role.NODE, "harmless")


def test_who_copies_a_new_file_meanwhile_wins(keys, tmp_path):
    _plain, seen = key_files.read(keys.directory)
    keys.admit(make_pair().public, Role.CLIENT, "laptop")
    assert not key_files.write(keys.directory, {}, replaces=seen)
    assert ClusterKeys.load(keys.directory).roster.role_of_member("laptop") is Role.CLIENT
    assert os.listdir(keys.directory) == ["keys.json"]
