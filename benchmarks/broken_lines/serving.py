"""Lines of the policy server: whom it answers, what it believes, and whose episode is whose."""

from __future__ import annotations

from broken_lines.row import of_part

SERVING = "tests/serving"

ROWS = of_part(
    "serving",
    (
        "atlas/serving/access.py",
        "return hmac.compare_digest(sent, self.key.encode())",
        "return True",
        "a wrong key is as good as the right one",
        f"{SERVING}/test_openpi_server.py::test_the_key_is_asked_for",
    ),
    (
        "atlas/system/array_codec.py",
        "if not isinstance(data, bytes) or len(data) != count * kind.itemsize:",
        "if not isinstance(data, bytes):",
        "an array is believed to be as large as it says",
        f"{SERVING}/test_array_codec.py::test_an_array_that_is_not_as_it_says_is_refused",
    ),
    (
        "atlas/serving/protocols/lerobot_pickles.py",
        "        if (module, name) not in _KNOWN:\n",
        "        if (module, name) not in _KNOWN:\n            return super().find_class(module, name)\n",
        "a pickle calls whatever it names",
        f"{SERVING}/test_lerobot_pickles.py::test_nothing_in_a_pickle_is_called",
    ),
    (
        "atlas/serving/protocols/client_layout.py",
        "        if not np.isfinite(state).all():\n",
        "        if False:\n",
        "a state that is not finite moves the robot",
        f"{SERVING}/test_client_layout.py::test_what_is_wrong_is_said_with_what_would_be_right",
    ),
    (
        "atlas/serving/policy_service.py",
        "            if not np.isfinite(actions).all():\n",
        "            if False:\n",
        "actions that are not finite are sent to a robot",
        f"{SERVING}/test_policy_service.py::test_a_policy_that_fails_fails_for_those_that_asked_and_goes_on",
    ),
    (
        "atlas/serving/policy_service.py",
        "            self._gone.append(session)\n",
        "            pass\n",
        "what was known of clients that are gone is kept for ever",
        f"{SERVING}/test_policy_service.py::test_sessions_that_are_closed_are_forgotten",
    ),
    (
        "atlas/serving/protocols/openpi_protocol.py",
        "            self._service.reset(session, entry.seed)\n",
        "            self._service.reset(session)\n",
        "a served policy draws other random numbers than the same policy without a server",
        f"{SERVING}/test_policy_client.py::test_its_actions_are_those_of_the_policy",
    ),
    (
        "atlas/serving/protocols/websocket_server.py",
        "            origins=[None],\n",
        "",
        "a web page may move the robot of whoever looks at it",
        f"{SERVING}/test_openpi_server.py::test_web_pages_are_not_let_in",
    ),
    (
        "atlas/serving/policy_client.py",
        "message |= ClientEntry(self._seeds.pop(number, None), running).to_message()",
        "message |= ClientEntry(self._seeds.pop(number, None)).to_message()",
        "a server is not told what a guided chunk is to go on from",
        f"{SERVING}/test_policy_client.py::test_its_actions_are_those_of_the_policy",
    ),
    (
        "atlas/serving/protocols/client_layout.py",
        "convert_state(state[None], layout.rotations)[0] if layout.rotations else state",
        "state",
        "a policy is shown a rotation in the client's form",
        f"{SERVING}/test_client_layout.py::test_rotations_of_a_state_are_turned_into_the_policys_form",
    ),
)
