"""map: names of images."""


def test_names(plash, image):
    child = plash("build", image, "true").id
    for name in "a", "b c", "ä":
        plash("map", name, image).ok()
        assert plash("map", name).id == image
    plash("map", "a", child).ok()
    assert plash("map").out == f"a {child}\nb c {image}\nä {image}\n"
    plash("map", "a", "").ok()
    assert plash("map", "a").error == "plash map: no image is named 'a'"
    plash("map", "a", "").ok()
