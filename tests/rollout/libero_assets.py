"""Stand-ins for LIBERO's meshes and textures: boxes of the same names.

LIBERO's own are 200 MB on a server that tests do not depend on. With these, its package builds the scenes of all its
tasks, with the joints, sites and regions that their starts and goals speak of; how things look and weigh is made up.
"""

from __future__ import annotations

import zlib
from pathlib import Path

import numpy as np
from PIL import Image

# Folder: things that are a small box, some with regions that goals name.
THINGS = {
    "stable_hope_objects": "alphabet_soup bbq_sauce butter chocolate_pudding cookies cream_cheese ketchup milk "
    "new_salad_dressing orange_juice salad_dressing tomato_sauce",
    "stable_scanned_objects": "chefmate_8_frypan glazed_rim_porcelain_ramekin white_bowl",
    "turbosquid_objects": "black_book desk_caddy moka_pot porcelain_mug red_coffee_mug white_yellow_mug wine_bottle "
    "wine_rack wooden_tray wooden_two_layer_shelf yellow_book",
}
REGIONS = {
    "desk_caddy": "back_contain_region front_contain_region left_contain_region right_contain_region",
    "wine_rack": "top_region",
    "wooden_tray": "contain_region",
    "wooden_two_layer_shelf": "bottom_region top_region top_side",
}
# Scene: its table, and how high it is; LIBERO itself sets the height of the first two.
TABLES = {
    "tabletop": ("table", 0.9),
    "kitchen_tabletop": ("table", 0.9),
    "living_room_tabletop": ("living_room_table", 0.41),
    "study": ("study_table", 0.86),
}
FLOOR_M = -0.035  # of libero_object, whose starts have things a little above it
_TEXTURES = ("light-gray-floor-tile", "light-gray-plaster", "gray_ceramic_tile", "seamless_wood_planks_floor")
_TEXTURES += ("yellow_linen_wall_texture",)


def write_assets(folder: Path) -> Path:
    """Write the stand-ins into a folder, laid out as LIBERO's."""
    for kind, names in THINGS.items():
        for name in names.split():
            regions = "".join(_site(r, (0, 0, 0.02), (0.04, 0.04, 0.03)) for r in REGIONS.get(name, "").split())
            _write(folder, f"{kind}/{name}/{name}.xml", _thing(name, _box((0.016, 0.016, 0.016)) + regions))
    for name, parts in {
        "akita_black_bowl": _box((0.03, 0.01, 0.03)),
        "plate": _box((0.04, 0.005, 0.04)),
        "basket": _basket(),
    }.items():
        _write(folder, f"stable_scanned_objects/{name}/{name}.xml", _thing(name, parts))
    for name, parts in {
        "wooden_cabinet": _cabinet(),
        "white_cabinet": _cabinet(),
        "flat_stove": _stove(),
        "microwave": _microwave(),
    }.items():
        _write(folder, f"articulated_objects/{name}.xml", _thing(name, parts))
    floor = _scene('<body name="floor" pos="0 0 0"/>', _ground(FLOOR_M))
    _write(folder, "scenes/libero_floor_base_style.xml", floor)
    for scene, (name, height) in TABLES.items():
        _write(folder, f"scenes/libero_{scene}_base_style.xml", _scene(_table(name, height), _ground(0)))
    for number, name in enumerate(_TEXTURES):
        stones = np.random.default_rng(number).integers(120, 220, (32, 32, 3), dtype=np.uint8)
        path = folder / "textures" / f"{name}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(stones).save(path)
    return folder


def _write(folder: Path, name: str, xml: str) -> None:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(xml)


def _thing(name: str, parts: str) -> str:
    """An object, in a colour of its own, with the sites that say how large it is."""
    colour = " ".join(str(zlib.crc32(f"{name}{i}".encode()) % 256 / 255) for i in range(3))
    sites = {"bottom_site": "0 0 -0.02", "top_site": "0 0 0.02", "horizontal_radius_site": "0.02 0.02 0"}
    sizes = "".join(f'<site name="{site}" pos="{pos}" size="0.005" rgba="0 0 0 0"/>' for site, pos in sites.items())
    return f"""<mujoco model="{name}"><worldbody><body>
        <body name="object">{parts.replace("COLOUR", f"{colour} 1")}</body>{sizes}
    </body></worldbody></mujoco>"""


def _box(size: tuple[float, float, float], pos: tuple[float, float, float] = (0, 0, 0)) -> str:
    """A box that is felt and the same one to be seen, as LIBERO's objects have them."""
    shape = f'type="box" size="{_numbers(size)}" pos="{_numbers(pos)}"'
    seen = f'<geom {shape} group="1" contype="0" conaffinity="0" mass="1e-6" rgba="COLOUR"/>'
    return f'<geom {shape} group="0" density="400" rgba="0 0 0 0"/>{seen}'


def _site(name: str, pos: tuple[float, float, float], size: tuple[float, float, float], alpha: int = 0) -> str:
    place = f'pos="{_numbers(pos)}" quat="1 0 0 0" size="{_numbers(size)}"'
    return f'<site name="{name}" type="box" {place} rgba="1 0 0 {alpha}"/>'


def _basket() -> str:
    """Open towards its own y axis, which LIBERO turns upwards."""
    walls = [((0.08, 0.005, 0.08), (0, -0.05, 0))]
    walls += [((0.005, 0.05, 0.08), (x, 0, 0)) for x in (-0.08, 0.08)]
    walls += [((0.08, 0.05, 0.005), (0, 0, z)) for z in (-0.08, 0.08)]
    return "".join(_box(size, pos) for size, pos in walls) + _site("contain_region", (0, 0, 0), (0.07, 0.05, 0.07))


def _cabinet() -> str:
    parts = _box((0.1, 0.08, 0.005), (0, 0, 0.2)) + _site("top_side", (0, 0, 0.21), (0.08, 0.06, 0.005))
    for name, height in {"bottom": 0.03, "middle": 0.09, "top": 0.15}.items():
        slide = f'<joint name="{name}_level" type="slide" axis="0 1 0" range="-0.16 0.01" damping="10" limited="true"/>'
        region = _site(f"{name}_region", (0, 0, 0), (0.08, 0.06, 0.02))
        parts += f'<body name="cabinet_{name}" pos="0 0 {height}">{slide}{_box((0.09, 0.07, 0.02))}{region}</body>'
    return parts


def _stove() -> str:
    knob = '<joint name="knob" type="hinge" axis="0 0 1" range="-0.005 2.1" damping="1" limited="true"/>'
    return (
        _box((0.1, 0.1, 0.02))
        + _site("cook_region", (0, 0, 0.03), (0.06, 0.06, 0.01))
        + f'<body name="button" pos="0.12 0 0.02">{knob}{_box((0.01, 0.02, 0.01))}'
        + f"{_site('burner', (0, 0, 0.02), (0.02, 0.02, 0.02))}</body>"
    )


def _ground(height: float) -> str:
    return f'<geom name="floor" type="plane" group="1" size="3 3 0.1" pos="0 0 {height}" material="floorplane"/>'


def _microwave() -> str:
    hinge = '<joint name="microjoint" type="hinge" axis="0 0 1" range="-2.1 0.01" damping="1" limited="true"/>'
    regions = _site("heating_region", (0, 0, 0.05), (0.06, 0.06, 0.03)) + _site(
        "top_side", (0, 0, 0.1), (0.06, 0.06, 0.01)
    )
    return (
        _box((0.1, 0.1, 0.01)) + f'<body name="door" pos="0 0 0.05">{hinge}{_box((0.01, 0.05, 0.03))}{regions}</body>'
    )


def _table(name: str, height: float) -> str:
    shape = f'type="box" size="0.4 0.6 {height / 2}"'
    legs = "".join(
        f'<geom name="table_leg{i}_visual" type="cylinder" size="0.02 0.1" group="1" contype="0" conaffinity="0"/>'
        for i in (1, 2, 3, 4)
    )
    return f"""<body name="{name}" pos="0 0 {height / 2}">
        <geom name="table_collision" {shape} group="0"/>
        <geom name="table_visual" {shape} group="1" contype="0" conaffinity="0"/>
        <site name="table_top" size="0.001" rgba="0 0 0 0"/>{legs}
    </body>"""


def _scene(body: str, ground: str) -> str:
    textures = "".join(
        f'<texture name="{name}" type="2d" file="../textures/{file}.png"/>'
        for name, file in zip(("texplane", "tex-wall"), _TEXTURES, strict=False)
    )
    materials = (
        '<material name="floorplane" texture="texplane" texrepeat="4 4"/><material name="wall" texture="tex-wall"/>'
    )
    seen = 'group="1" contype="0" conaffinity="0"'
    wall = f'<geom name="wall" type="box" size="0.01 3 3" pos="-2 0 1" {seen} material="wall"/>'
    lamp = '<light pos="1 1 3" dir="-0.2 -0.2 -1" directional="true" castshadow="false"/>'
    return f"""<mujoco model="scene"><asset>{textures}{materials}</asset>
        <worldbody>{ground}{wall}{body}{lamp}</worldbody></mujoco>"""


def _numbers(values: tuple[float, ...]) -> str:
    return " ".join(map(str, values))
