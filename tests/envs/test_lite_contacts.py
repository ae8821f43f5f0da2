"""Which contacts lite kitchens do without."""

import itertools

import mujoco

from deas_vla.envs.robocasa.lite.contacts import spare_fixture_contacts

# Everything overlaps everything; bodies are named as robosuite and RoboCasa name theirs.
SCENE = """
<mujoco><worldbody>
  <body name="fridge_main_main"><geom size="1"/>
    <body name="fridge_main_door"><joint type="hinge"/><geom size="1"/></body></body>
  <body name="counter_main_main"><geom size="1"/></body>
  <body name="drawer_main_main"><joint type="slide"/><geom size="1"/></body>
  <body name="obj_main"><joint type="free"/><geom size="1"/></body>
  <body name="apple_main"><freejoint/><geom size="1"/></body>
  <body name="robot0_base"><body name="gripper0_pad"><joint type="slide"/><geom size="1"/>
    <geom contype="0" size="1"/></body></body>
</worldbody></mujoco>"""


def touching(xml: str) -> set[frozenset[str]]:
    model = mujoco.MjModel.from_xml_string(xml)
    data = mujoco.MjData(model)
    mujoco.mj_forward(model, data)
    bodies = [model.geom_bodyid[c.geom] for c in data.contact]
    return {frozenset(model.body(int(b)).name.split("_")[0] for b in pair) for pair in bodies}


def test_fixtures_touch_the_robot_and_objects_alone() -> None:
    fixtures, others = ("fridge", "counter", "drawer"), ("obj", "apple", "gripper0")
    expected = {frozenset(pair) for pair in itertools.product(fixtures, others)}
    expected |= {frozenset(pair) for pair in itertools.combinations(others, 2)}
    assert touching(spare_fixture_contacts(SCENE)) == expected
    assert frozenset(("fridge", "drawer")) in touching(SCENE)  # which it does otherwise
