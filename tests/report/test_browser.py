"""The page in a real browser: what a person sees, does, and must not be hurt by."""

import json
import time

import pytest
import told
from browser import chromium

from nepa_jax.cli import main
from nepa_jax.report.page import embedded, html_of, page_of

HOSTILE = "</script><img src=x onerror=alert(1)>"


@pytest.fixture(scope="module")
def browser():
    with chromium() as found:
        yield found


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two runs, the second of which went badly for a while."""
    folder = tmp_path_factory.mktemp("runs")
    told.write_workdir(folder / "a", 2000, seed=0)
    second = told.write_workdir(folder / "b", 6000, seed=1)
    rows = [json.loads(line) for line in (second / "metrics.jsonl").open()]
    rows[100]["train/loss"] = None
    rows[200]["train/grad_norm"] = 777.0
    for row in rows[300:320]:
        row["time/data_wait_s"] = 0.1
    told.write_log(second, rows)
    told.write_picture(second / "pictures/step-9.png")
    told.write_picture(second / "pictures/step-10.png")
    return folder


def written(folder, *names):
    """The address of a page of some runs."""
    file = folder / f"{'-'.join(names) or 'all'}.html"
    main(["report", *(str(folder / name) for name in names or ("",)), f"--out={file}"])
    return f"file://{file}"


@pytest.fixture(scope="module")
def both(runs):
    return written(runs)


def seen(page):
    """Scrolls to the end, so that every chart is drawn."""
    for part in range(12):
        page.evaluate(f"scrollTo(0, {part} * document.body.scrollHeight / 12)")
        page.wait_for_timeout(30)
    page.evaluate("scrollTo(0, 0)")


def inked(page, metric):
    """How many points of a chart's canvas are not empty."""
    return page.evaluate(
        """(metric) => {
          const canvas = document.querySelector(`[data-metric="${metric}"] canvas`);
          const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
          return data.filter((value, at) => at % 4 === 3 && value > 0).length;
        }""",
        metric,
    )


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_everything_is_there_and_nothing_is_wider_than_the_screen(browser, both, width, scheme):
    with browser.open(both, width, scheme) as page:
        seen(page)
        assert page.evaluate("document.documentElement.scrollWidth") == width
        titles = page.locator("h2").all_inner_texts()
        assert titles == [
            "Runs", "Curves", "Alarms", "Where the time went", "What the features are worth",
            "Pictures", "Config", "Do it again",
        ]  # fmt: skip
        assert inked(page, "train/loss") > 1000
        ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert (ground == "rgb(20, 21, 23)") == (scheme == "dark")


def test_one_run_has_its_numbers_at_the_top(browser, runs):
    with browser.open(written(runs, "a")) as page:
        assert page.locator("h1").inner_text().split() == ["a", "done"]
        tiles = page.locator(".tile").all_inner_texts()
        assert "Step\n2,000\nof 2,000" in tiles
        assert any(tile.startswith("knn\n32.0 %\nuntrained 17.0 %") for tile in tiles)
        assert page.locator("#run-table").count() == 0


def test_the_theme_is_switched_and_kept(browser, both):
    with browser.open(both, scheme="light") as page:
        ground = "getComputedStyle(document.body).backgroundColor"
        light = page.evaluate(ground)
        for name in ("light", "dark"):
            page.locator("#theme").click()
            assert page.locator("#theme").inner_text() == f"Theme: {name}"
        dark = page.evaluate(ground)
        assert dark != light
        page.reload()
        page.wait_for_selector("h1")
        assert page.evaluate(ground) == dark
        page.emulate_media(color_scheme="dark")
        page.locator("#theme").click()  # auto, which is dark here
        assert (
            page.locator("#theme").inner_text() == "Theme: auto" and page.evaluate(ground) == dark
        )


def test_values_appear_under_the_pointer(browser, both, runs):
    with browser.open(both) as page:
        chart = page.locator('[data-metric="train/lr"] canvas').first
        chart.scroll_into_view_if_needed()
        page.wait_for_timeout(100)
        chart.hover(position={"x": 120, "y": 60})
        tip = page.locator("#tip")
        text = tip.inner_text()
        assert text.startswith("step ") and "a" in text and "b" in text
        step = int(text.split()[1].replace(",", ""))
        rows = map(json.loads, (runs / "b" / "metrics.jsonl").read_text().splitlines())
        logged = next(row["train/lr"] for row in rows if row["step"] == step)
        assert page.evaluate("(value) => shown(value)", logged) in text
        others = "[...charts.byKey.values()].filter(({chart}) => chart.seen).map(({chart}) => chart.hovered)"
        (there,) = set(page.evaluate(others))  # the same place in all charts
        assert abs(there - step) <= 60
        page.mouse.move(5, 5)
        assert tip.is_hidden()
        chart.focus()
        page.keyboard.press("ArrowRight")
        page.keyboard.press("ArrowRight")
        assert tip.inner_text().startswith("step 20\n")


def test_a_restart_is_told_where_it_was(browser, runs):
    with browser.open(written(runs, "a")) as page:
        page.locator('[data-metric="train/loss"] canvas').first.scroll_into_view_if_needed()
        page.wait_for_timeout(100)
        place = page.evaluate("charts.byKey.get('train/loss').chart.axes.x.place(800)")
        page.locator('[data-metric="train/loss"] canvas').first.hover(
            position={"x": place, "y": 50}
        )
        assert (
            "restarted at step 800, 30 done again, 1 min 30 s away"
            in page.locator("#tip").inner_text()
        )


def test_dragging_zooms_all_charts_and_a_double_click_returns(browser, both):
    with browser.open(both) as page:
        chart = page.locator('[data-metric="train/loss"] canvas').first
        chart.scroll_into_view_if_needed()
        page.wait_for_timeout(100)
        box = chart.bounding_box()
        page.mouse.move(box["x"] + 200, box["y"] + 50)
        page.mouse.down()
        page.mouse.move(box["x"] + 300, box["y"] + 60, steps=4)
        page.mouse.up()
        low, high = page.evaluate("charts.view")
        assert 0 < low < high < 6000
        assert page.evaluate("charts.byKey.get('train/lr').chart.axes.x.low") == low
        assert page.locator("#reset").is_visible()
        chart.dblclick()
        assert page.evaluate("charts.view") is None and page.locator("#reset").is_hidden()


def column(page, table, at):
    return [
        row.locator("td").nth(at).inner_text() for row in page.locator(f"#{table} tbody tr").all()
    ]


def test_the_table_of_runs_sorts(browser, both):
    with browser.open(both) as page:
        head = page.locator("#run-table th").nth(3)
        assert [text.strip() for text in column(page, "run-table", 0)] == ["a", "b"]
        head.locator("button").click()  # the greatest first
        assert column(page, "run-table", 3) == ["6,000 / 6,000", "2,000 / 2,000"]
        assert head.get_attribute("aria-sort") == "descending"
        head.locator("button").click()
        assert column(page, "run-table", 3) == ["2,000 / 2,000", "6,000 / 6,000"]


def test_runs_are_left_out_and_taken_in(browser, both):
    with browser.open(both) as page:
        seen(page)
        lines = "charts.byKey.get('train/loss').chart.content.lines.map((line) => line.name)"
        assert page.evaluate(lines) == ["a", "b"]
        page.locator('[data-run="a"]').uncheck()
        seen(page)
        assert page.evaluate(lines) == ["b"] and page.locator(".chip").all_inner_texts() == ["b"]
        page.locator('[data-run="a"]').check()
        page.locator(".chip").nth(1).click()
        seen(page)
        assert page.evaluate(lines) == ["a"]


def test_controls_change_what_is_drawn(browser, both):
    with browser.open(both) as page:
        seen(page)
        chart = "charts.byKey.get('train/grad_norm').chart"
        assert page.evaluate(f"{chart}.axes.y.high") > 777  # no extreme is left out unasked
        page.locator("#clip").check()
        assert page.evaluate(f"{chart}.axes.y.high") < 20
        page.locator("#logY").check()
        seen(page)
        assert page.evaluate(f"{chart}.axes.y.low") > 0
        page.locator('[data-metric="train/grad_norm"] button').click()
        assert page.evaluate(f"{chart}.axes.y.place(1) !== {chart}.axes.y.place(2)")
        page.locator("#smoothing").fill("0")
        assert page.evaluate(f"{chart}.content.lines[0].smooth") is None
        for axis, last in (("images", 6000 * 8), ("hours", 6000 * 0.41 / 3600)):
            page.locator("#axis").select_option(axis)
            assert page.evaluate(f"{chart}.axes.x.high") == pytest.approx(last, rel=0.03)


def test_differences_alarms_and_pictures(browser, both):
    with browser.open(both) as page:
        assert column(page, "difference-table", 0) == ["run.seed", "schedule.total_steps"]
        assert column(page, "difference-table", 2) == ["1", "6000"]
        alarms = page.locator(".alarms li").all_inner_texts()
        assert len(alarms) == 2 and "train/loss was not finite" in alarms[0]
        assert "20 logged steps" in alarms[1] and "waits for data" in alarms[1]
        assert page.locator(".pictures figcaption").all_inner_texts() == ["step-10.png"]  # the last
        page.locator(".pictures input").fill("0")
        assert page.locator(".pictures figcaption").all_inner_texts() == ["step-9.png"]
        loaded = (
            "[...document.images].every((image) => image.complete && image.naturalWidth === 48)"
        )
        page.locator(".pictures img").last.scroll_into_view_if_needed()
        page.wait_for_function(loaded)
        page.locator(".pictures button").first.click()
        assert page.locator("dialog[open]").count() == 1


SMOOTH = "(x, y, width) => smoothed(x, y, width)"


def test_smoothing_keeps_a_level_and_has_no_lag(browser, both):
    with browser.open(both) as page:
        x = list(range(0, 100, 2))
        assert page.evaluate(f"({SMOOTH})({x}, {[3.0] * 50}, 7)") == pytest.approx([3.0] * 50)
        step = [0.0] * 25 + [1.0] * 25
        found = page.evaluate(f"({SMOOTH})({x}, {step}, 7)")
        assert [1 - value for value in found[::-1]] == pytest.approx(found)
        assert found == sorted(found) and found[24] < 0.5 < found[25]


@pytest.mark.trial
def test_names_and_values_with_markup_are_text(browser, tmp_path):
    run = told.write_workdir(tmp_path / "in" / HOSTILE.replace("/", "\u2215"), steps=200)
    config = json.loads((run / "config.json").read_text())
    config["data"]["path"] = HOSTILE
    (run / "config.json").write_text(json.dumps(config))
    told.write_log(run, [{"step": s, HOSTILE: s * 0.5, "train/loss": 1.0} for s in (1, 2, 3)])
    with (run / "metrics.jsonl").open("a") as file:
        file.write(HOSTILE + "\n" + HOSTILE + "\n")
    told.write_evaluations(run, told.report(HOSTILE, weights=HOSTILE, chosen=HOSTILE))
    (run / "eval/results.csv").write_text(f"probe,x\n{HOSTILE},{HOSTILE}\n")
    (run / "eval/card.md").write_text(HOSTILE)
    told.write_picture(run / "<img src=x onerror=alert(1)>.png")
    other = told.write_workdir(tmp_path / "in" / "b", steps=200)
    assert other
    with browser.open(written(tmp_path / "in")) as page:
        page.on("dialog", lambda dialog: pytest.fail("markup was run"))
        seen(page)
        for details in page.locator("details > summary").all():
            details.click()
        page.wait_for_timeout(100)
        assert page.evaluate(
            "[...document.images].map((image) => image.getAttribute('src').slice(0, 5))"
        ) == ["data:"]
        assert page.evaluate("document.scripts.length") == 2
        text = page.locator("body").inner_text()
        assert text.count(HOSTILE) >= 8


@pytest.mark.trial
@pytest.mark.parametrize(
    "rows",
    [
        [{"step": 1, "train/loss": 0.5}],
        [{"step": 0, "train/loss": 0.0}],
        [{"step": 1, "train/loss": None}],
        [{"step": 5, "train/loss": None}, {"step": 6, "train/loss": -1e30}, {"step": 7, "train/loss": 1e30}],
        [{"step": s, "train/loss": -1.0} for s in range(1, 30)],
        [{"step": 2**62 + s, "train/loss": 1e-300} for s in range(3)],
    ],
)  # fmt: skip
def test_odd_logs_are_drawn_with_and_without_logarithms(browser, tmp_path, rows):
    told.write_log(tmp_path / "a", rows)
    with browser.open(written(tmp_path, "a")) as page:
        seen(page)
        for box in ("#logX", "#logY", "#clip"):
            page.locator(box).check()
            page.locator('[data-metric="train/loss"] canvas').first.hover(
                position={"x": 200, "y": 60}
            )
        assert page.locator('[data-metric="train/loss"]').count() == 1


def test_many_points_do_not_lag(browser, tmp_path):
    """Eight runs of 3,000 lines, as much as is drawn of longer ones: a drawing of all that is in sight, and a move of the pointer."""
    import random

    for run in range(8):
        draw = random.Random(run)
        told.write_log(
            tmp_path / f"r{run}", (told.metrics_of(s, 3000, draw) for s in range(1, 3001))
        )
    with browser.open(written(tmp_path)) as page:
        seen(page)
        drawing = page.evaluate(
            "(() => { const t = performance.now(); redraw(); return performance.now() - t; })()"
        )
        moving = page.evaluate("""(() => {
          const { chart } = charts.byKey.get("train/loss");
          const began = performance.now();
          for (let at = 1; at <= 20; at++) charts.hover(100 * at, chart);
          return (performance.now() - began) / 20;
        })()""")
        assert drawing < 2000 and moving < 50  # milliseconds; a tenth of it on an idle machine


def test_a_run_that_has_not_logged_yet_is_waited_for(browser, tmp_path):
    (tmp_path / "run.lock").write_text("")
    file = tmp_path / "page.html"
    file.write_text(html_of(page_of({"a": tmp_path}, embedded)))
    with browser.open(f"file://{file}") as page:
        assert "No step is logged yet." in page.locator("#curves").inner_text()
        assert page.locator("#commands code").count() >= 1


def test_a_served_page_follows_its_runs(browser, tmp_path):
    import threading

    from nepa_jax.report import server as serving

    run = told.write_workdir(tmp_path / "a", steps=400)
    (run / "DONE").unlink()
    told.write_picture(run / "pictures/one.png")
    server = serving.open_server([str(tmp_path)], "127.0.0.1", 0)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_address[1]}/"
    with browser.open(address) as page:
        assert "live" in page.locator("#made").inner_text()
        assert "400" in page.locator(".tile").nth(1).inner_text()
        page.locator(".pictures img").scroll_into_view_if_needed()
        page.wait_for_function("document.images[0].naturalWidth === 48")
        with (run / "metrics.jsonl").open("a") as file:
            file.write('{"step": 410, "train/loss": 0.25}\n{"step": 420, "tra')
        time.sleep(serving.REFRESH_S / 2)
        page.evaluate("update()")
        page.wait_for_function("document.querySelectorAll('.tile .value')[1].innerText === '410'")
        assert page.locator(".tile").nth(0).inner_text().startswith("Loss\n0.25")
    server.shutdown()
    server.server_close()
