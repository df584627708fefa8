"""Meta-World's fifty tasks: their instructions, the ten of MT10, and their difficulty."""

from __future__ import annotations

from atlas.errors import InputError, did_you_mean

PREFIX = "metaworld-"

# {the task's name in Meta-World, without its version: the policy's instruction}
TASKS = {
    "assembly": "put the ring onto the peg",
    "basketball": "dunk the basketball into the basket",
    "bin-picking": "move the block from one bin into the other",
    "box-close": "put the cover onto the box",
    "button-press-topdown": "press the button down from above",
    "button-press-topdown-wall": "press the button down from above, over the wall",
    "button-press": "press the button on the front of the box",
    "button-press-wall": "press the button on the front of the box, around the wall",
    "coffee-button": "push the button of the coffee machine",
    "coffee-pull": "pull the mug away from the coffee machine",
    "coffee-push": "push the mug under the coffee machine",
    "dial-turn": "turn the dial",
    "disassemble": "take the ring off the peg",
    "door-close": "close the door",
    "door-lock": "lock the door",
    "door-open": "open the door",
    "door-unlock": "unlock the door",
    "hand-insert": "put the gripper into the hole",
    "drawer-close": "close the drawer",
    "drawer-open": "open the drawer",
    "faucet-open": "open the faucet",
    "faucet-close": "close the faucet",
    "hammer": "hammer the nail into the wall",
    "handle-press-side": "press the handle down from the side",
    "handle-press": "press the handle down",
    "handle-pull-side": "pull the handle up from the side",
    "handle-pull": "pull the handle up",
    "lever-pull": "pull the lever up",
    "pick-place-wall": "pick up the puck and put it on the goal behind the wall",
    "pick-out-of-hole": "pick the puck out of the hole",
    "pick-place": "pick up the puck and bring it to the goal",
    "plate-slide": "slide the plate into the cabinet",
    "plate-slide-side": "slide the plate sideways into the cabinet",
    "plate-slide-back": "slide the plate out of the cabinet",
    "plate-slide-back-side": "slide the plate sideways out of the cabinet",
    "peg-insert-side": "insert the peg into the hole in the side of the block",
    "peg-unplug-side": "pull the peg out of the hole in the side of the block",
    "soccer": "push the ball into the goal",
    "stick-push": "push the box with the stick",
    "stick-pull": "pull the box with the stick",
    "push": "push the puck to the goal",
    "push-wall": "push the puck around the wall to the goal",
    "push-back": "push the puck back to the goal",
    "reach": "reach the goal",
    "reach-wall": "reach the goal behind the wall",
    "shelf-place": "put the puck onto the shelf",
    "sweep-into": "sweep the puck into the hole",
    "sweep": "sweep the puck off the table",
    "window-open": "open the window",
    "window-close": "close the window",
}
MT10 = (
    *("reach", "push", "pick-place", "door-open", "drawer-open", "drawer-close", "button-press-topdown"),
    *("peg-insert-side", "window-open", "window-close"),
)
# Seo et al., Masked World Models for Visual Control (2022), appendix F; tables of MT50 give the mean of the four tiers.
_HARDER = {
    "medium": (
        *("basketball", "bin-picking", "box-close", "coffee-pull", "coffee-push", "hammer", "peg-insert-side"),
        *("push-wall", "soccer", "sweep", "sweep-into"),
    ),
    "hard": ("assembly", "hand-insert", "pick-out-of-hole", "pick-place", "push", "push-back"),
    "very hard": ("shelf-place", "disassemble", "stick-pull", "stick-push", "pick-place-wall"),
}
TIERS = {"easy": tuple(task for task in TASKS if not any(task in each for each in _HARDER.values())), **_HARDER}
_SETS = {"mt10": MT10, "mt50": tuple(TASKS)}


def tasks_in(name: str) -> tuple[str, ...]:
    """The tasks of `metaworld-<task>`, `metaworld-mt10` or `metaworld-mt50`. Raises InputError for any other name."""
    asked = name.removeprefix(PREFIX)
    if asked in _SETS:
        return _SETS[asked]
    if asked not in TASKS:
        known = [*_SETS, *TASKS]
        raise InputError(
            f"Unknown environment '{name}': Meta-World has no task '{asked}'.{did_you_mean(asked, known)} Known: "
            f"{', '.join(known)}."
        )
    return (asked,)


def tiers_of(tasks: tuple[str, ...]) -> tuple[tuple[str, tuple[str, ...]], ...]:
    """(tier, instructions) for tasks of two tiers or more; empty otherwise."""
    found = [(tier, tuple(TASKS[task] for task in tasks if task in members)) for tier, members in TIERS.items()]
    found = [(tier, instructions) for tier, instructions in found if instructions]
    return tuple(found) if len(found) > 1 else ()
