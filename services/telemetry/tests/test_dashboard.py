from __future__ import annotations

import re
from collections.abc import Generator

import pytest
from playwright.sync_api import Browser, BrowserContext, expect
from watching import clean, fits, opened
from world import Threaded
from worldlog import TRACE_ID, lines, loss_at, now_ms, steps

from distroml.api.rendezvous.v1 import rendezvous_pb2 as r
from distroml.api.scheduler.v1 import events_pb2 as s

# What is written on a chart, each text with its upper and lower edge. Of a text's height ECharts only has an estimate:
# it is taken from its font.
WRITTEN = """async plot => {
  const { echarts } = await import("nicegui-echart");
  const drawn = echarts.getInstanceByDom(plot).getZr().storage.getDisplayList(true);
  return drawn.filter(e => e.style.text).map(e => {
    const box = e.getBoundingRect().clone();
    if (e.transform) box.applyTransform(e.transform);
    const middle = box.y + box.height / 2, half = parseFloat(e.style.font.match(/([\\d.]+)px/)[1]) / 2;
    return { text: e.style.text, top: middle - half, bottom: middle + half };
  });
}"""


@pytest.fixture(params=[(1400, "light"), (420, "dark")], ids=["1400-light", "420-dark"])
def context(request: pytest.FixtureRequest, browser: Browser, fed: Threaded) -> Generator[BrowserContext]:
    width, scheme = request.param
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
    context.request.get(fed.world.dashboard.login_url)
    yield context
    context.close()


def test_the_jobs_page_lists_what_runs_and_hears_of_new_jobs_without_a_reload(
    fed: Threaded, context: BrowserContext
) -> None:
    watched = opened(context, fed.world.dashboard.url)
    page = watched.page
    row = page.locator("tr[data-id=job-live]")
    expect(row).to_contain_text("gpt-stdlib")
    expect(row).to_contain_text("running")
    expect(row).to_contain_text("380 / 1,000")
    page.evaluate("window.stillThere = true")
    name = f"job-new-{now_ms()}"
    fed.do(fed.world.log.submit(name, name="fresh"))
    expect(page.locator(f"tr[data-id={name}]")).to_contain_text("WaitingForSlots")
    assert page.evaluate("window.stillThere")
    fits(page)
    clean(watched)


def test_costs_are_shown_by_day_and_job_and_on_the_jobs_page(fed: Threaded, wide: BrowserContext) -> None:
    watched = opened(wide, f"{fed.world.dashboard.url}/cost")
    page = watched.page
    row = page.locator("tr", has_text="job-live")
    expect(row).to_contain_text(re.compile(r"\d\.\d\d\d"))
    expect(page.locator("th", has_text="EUR")).to_have_count(2)
    fits(page)
    clean(watched)
    watched = opened(wide, f"{fed.world.dashboard.url}/jobs/job-live")
    expect(watched.page.locator("main.grid")).to_contain_text("Slot-hours")
    clean(watched)


def test_jobs_are_found_by_text_and_by_state_and_the_address_keeps_the_filter(
    fed: Threaded, wide: BrowserContext
) -> None:
    fed.do(fed.world.log.submit(name := f"job-find-{now_ms()}", name="needle"))
    watched = opened(wide, fed.world.dashboard.url)
    page = watched.page
    page.keyboard.press("/")
    page.keyboard.type(name)
    expect(page.locator("tbody tr")).to_have_count(1)
    page.wait_for_url(re.compile(f"q={name}"))
    page.reload()
    expect(page.locator("tbody tr")).to_have_count(1)
    page.locator("button.tile[data-key=succeeded]").click()
    expect(page.locator(".empty")).to_contain_text("No job matches")
    clean(watched)


def test_the_job_page_shows_progress_marks_workers_logs_events_and_checkpoints(
    fed: Threaded, context: BrowserContext
) -> None:
    watched = opened(context, f"{fed.world.dashboard.url}/jobs/job-live")
    page = watched.page
    expect(page.locator("h1")).to_have_text("gpt-stdlib")
    expect(page.locator(".job-head .pill")).to_contain_text("running")
    chart = page.locator(".chart").first
    expect(chart).not_to_have_attribute("data-points", "0")
    marks = (chart.get_attribute("data-marks") or "").split()
    assert {"checkpoint@100", "checkpoint@200", "checkpoint@300", "failure@240", "generation@201"} <= set(marks)
    ink = "c => { const d = c.getContext('2d').getImageData(0, 0, c.width, c.height).data; return d.some(v => v) }"
    assert chart.locator("canvas").evaluate(ink), "nothing is drawn on the chart"
    stacked = page.locator(".chart").nth(1)
    expect(stacked).not_to_have_attribute("data-points", "0")
    written = stacked.locator(".plot").evaluate(WRITTEN)
    name = next(line for line in written if line["text"] == "seconds per step")
    below = [mark["top"] for mark in written if mark["text"] in "▲◆●" and mark["top"] > name["top"]]
    assert len(below) == len(marks)
    assert name["bottom"] <= min(below), "marks are drawn over the name of a chart"
    workers = page.get_by_role("table", name="workers")
    expect(workers.locator("tbody tr")).to_have_count(2)
    expect(workers.locator("thead")).to_contain_text("GPU")
    expect(workers.locator("tbody tr").nth(1)).to_contain_text("71%")
    expect(page.get_by_role("table", name="checkpoints").locator("tbody tr").first).to_contain_text("committed")
    expect(page.get_by_role("table", name="recoveries").locator("tbody tr")).to_contain_text("signal")
    expect(page.locator(".facts [data-key=restarts]")).to_contain_text("1 × signal")
    traced = page.get_by_role("link", name="Trace of this job")
    expect(traced).to_have_attribute("href", f"http://jaeger.test:16686/trace/{TRACE_ID}")
    charts = page.get_by_role("link", name="This job in Grafana")
    expect(charts).to_have_attribute("href", "http://grafana.test:3000/d/distroml-job?var-job_id=job-live")
    event = page.locator(".events details", has_text="GenerationBroken")
    event.locator("summary").click()
    expect(event.locator("pre")).to_contain_text('"killed by SIGKILL"')
    expect(event.locator(".meta")).to_contain_text("dep-test:")
    fits(page)
    clean(watched)


def test_steps_lines_and_events_arrive_without_a_reload(fed: Threaded, context: BrowserContext) -> None:
    job = f"job-now-{now_ms()}"
    world = fed.world
    fed.do(world.log.submit(job, name="live"))
    fed.do(world.log.start(job))
    fed.do(world.folded())
    watched = opened(context, f"{world.dashboard.url}/jobs/{job}")
    page = watched.page
    chart = page.locator(".chart").first
    expect(chart).to_have_attribute("data-points", "0")
    expect(page.locator(".live.on")).to_be_visible()
    page.evaluate("window.stillThere = true")
    for first, last in ((1, 5), (6, 12)):
        fed.do(world.push(steps=steps(job, first, last), logs=lines(job, [f"at {last}"], offset=last * 1000)))
        expect(chart).to_have_attribute("data-points", str(last))
        expect(page.get_by_role("log", name="lines of the workers")).to_contain_text(f"at {last}")
        expect(page.locator(".facts [data-key=loss]")).to_contain_text(f"{loss_at(last):.4f}")
    fed.do(world.log.lose(job, 1, step=12))
    expect(page.locator(".job-head .pill")).to_contain_text("recovering")
    fed.do(world.log.generation(job, 2))
    fed.do(world.push(steps=steps(job, 9, 10, generation=2)))
    expect(page.locator(".job-head .pill")).to_contain_text("running")
    expect(chart).to_have_attribute("data-points", "10")
    expect(chart).to_have_attribute("data-marks", re.compile("failure@12.*generation@9"))
    fed.do(world.log.job(job, "Succeeded", s.JobSucceeded(at_ms=now_ms())))
    expect(page.locator(".job-head .pill")).to_contain_text("succeeded")
    expect(page.locator(".job-head")).not_to_contain_text("no step was seen")
    expect(page.locator(".events details").first).to_contain_text("Succeeded")
    assert page.evaluate("window.stillThere")
    page.reload()
    expect(chart).to_have_attribute("data-points", "10")
    clean(watched)


def test_the_plan_its_picture_and_its_measurement_are_shown_and_followed(
    fed: Threaded, context: BrowserContext
) -> None:
    job = f"job-plan-{now_ms()}"
    world = fed.world
    fed.do(world.log.submit(job, name="planned"))
    fed.do(world.log.start(job))
    fed.do(world.folded())
    watched = opened(context, f"{world.dashboard.url}/jobs/{job}")
    page = watched.page
    expect(page.locator(".live.on")).to_be_visible()
    expect(page.locator(".plan")).to_be_hidden()
    page.evaluate("window.stillThere = true")
    fed.do(world.log.plan(job))
    panel = page.locator(".plan-text")
    expect(panel).to_contain_text("generation 1")
    expect(panel).to_contain_text("pp=2,microbatch=4,accum=8,schedule=1f1b,stages=3/3")
    expect(panel).to_contain_text("two stages fit, one does not")
    expect(panel).to_contain_text("the bubble: 18%")
    expect(panel.locator(".best")).to_contain_text("needs 1.4 GB of the 1 GB there is")
    expect(panel.locator("h2 .pill")).to_have_text("not measured yet")
    expect(panel.locator("tr[data-key=step]")).to_contain_text("240 ms")
    expect(page.locator(".plan-picture rect.forward:has(title)")).to_have_count(16)
    expect(page.locator(".facts [data-key=world]")).to_contain_text("pp 2")
    fed.do(world.push(steps=steps(job, 1, 4, step_s=0.36)))
    expect(panel.locator("tr[data-key=step] td").last).to_contain_text(re.compile(r"3\d\d ms"))
    fed.do(world.log.measured(job, step_s=0.36, verdict="Slower"))
    expect(panel.locator("h2 .pill")).to_have_text("slower than predicted")
    expect(panel.locator("tr[data-key=step]")).to_contain_text("+50 %")
    expect(panel.locator("tr[data-key=memory]")).to_contain_text("+2 %")
    expect(panel).to_contain_text("the next plan is made with it")
    fed.do(world.log.plan(job, generation=2, step_s=0.35))
    expect(panel).to_contain_text("generation 2")
    panel.locator("summary").click()
    expect(panel.locator(".earlier")).to_contain_text("predicted 240 ms, measured 360 ms, slower than predicted")
    assert page.evaluate("window.stillThere")
    fits(page)
    clean(watched)


def test_compression_its_changes_and_what_auto_would_gain_are_shown(fed: Threaded, wide: BrowserContext) -> None:
    job = f"job-compressed-{now_ms()}"
    world = fed.world
    fed.do(world.log.submit(job, name="compressed"))
    fed.do(world.log.start(job))
    fed.do(world.push(steps=steps(job, 1, 40, step_s=0.2)))
    fed.do(world.folded())
    watched = opened(wide, f"{world.dashboard.url}/jobs/{job}")
    page = watched.page
    panel = page.locator(".compression")
    expect(page.locator(".live.on")).to_be_visible()
    expect(panel).to_be_hidden()
    fed.do(world.log.advise(job, step=23))
    expect(panel).to_contain_text("62 % of a step waits for communication; --compress auto would make a step of 500 ms")
    expect(panel).to_contain_text("one of 210 ms, and reach a loss 2.3 times faster")
    expect(panel).to_contain_text("No scheme has changed")
    fed.do(world.log.generation(job, 2))
    expect(panel).to_be_hidden()
    fed.do(world.log.schemes(job, generation=2, step=30, buckets=4, to="powersgd:4+int8", why="the links do 10 Mbit/s"))
    expect(panel).to_contain_text("powersgd:4+int8 (buckets 0–3)")
    row = panel.locator("tbody tr")
    expect(row).to_have_count(1)
    expect(row).to_contain_text("none → powersgd:4+int8")
    expect(row).to_contain_text("the links do 10 Mbit/s")
    expect(row).to_contain_text("LinkSlower")
    expect(page.locator("figure.chart").first).to_have_attribute("data-marks", re.compile("scheme@30"))
    fits(page)
    clean(watched)


def test_a_plan_that_cannot_be_read_is_said_to_be_so(fed: Threaded, wide: BrowserContext) -> None:
    job = f"job-odd-{now_ms()}"
    world = fed.world
    fed.do(world.log.submit(job))
    fed.do(world.log.start(job))
    odd = r.PlanChosen(at_ms=now_ms(), generation=1, plan='{"pp": -1}', prediction="[", best='{"a": 1}')
    fed.do(world.log.tell(f"rendezvous/job/{job}", ("rendezvous.plan.PlanChosen", odd)))
    fed.do(world.folded())
    watched = opened(wide, f"{world.dashboard.url}/jobs/{job}")
    expect(watched.page.locator(".plan-text")).to_contain_text("a plan that this release cannot read")
    expect(watched.page.locator(".plan-box")).to_be_hidden()
    clean(watched)


def test_lines_by_rank_by_text_and_markup_stays_text(fed: Threaded, wide: BrowserContext) -> None:
    job = f"job-logs-{now_ms()}"
    world = fed.world
    fed.do(world.log.submit(job))
    fed.do(world.log.start(job))
    evil = "<img src=x onerror=\"document.title='owned'\"> ${1} `2`"
    fed.do(world.push(logs=lines(job, ["from zero", evil]) + lines(job, ["from one", "NaN seen"], rank=1)))
    fed.do(world.folded())
    watched = opened(wide, f"{world.dashboard.url}/jobs/{job}")
    page = watched.page
    rows = page.locator(".lines .ln")
    expect(rows).to_have_count(4)
    expect(rows.nth(1)).to_contain_text(evil)
    page.get_by_label("rank", exact=True).select_option("1")
    expect(rows).to_have_count(2)
    page.get_by_label("search lines").fill("nan")
    expect(rows).to_have_count(1)
    expect(page.locator(".lines mark")).to_have_text("NaN")
    assert page.title() != "owned"
    # Nobody told a step of this one.
    fed.do(world.log.job(job, "Succeeded", s.JobSucceeded(at_ms=now_ms())))
    expect(page.locator(".job-head")).to_contain_text("ended with exit 0 and no step was seen")
    clean(watched)


def test_kept_lines_are_searched_in_a_tab_of_their_own(fed: Threaded, wide: BrowserContext) -> None:
    job = f"job-search-{now_ms()}"
    world = fed.world
    fed.do(world.log.submit(job))
    fed.do(world.log.start(job))
    many = [f"step {n} loss <b>{n}</b>" for n in range(250)]
    fed.do(world.push(logs=lines(job, many) + lines(job, ["ERROR: step lost", "restarted"], rank=1)))
    fed.do(world.folded())
    watched = opened(wide, f"{world.dashboard.url}/jobs/{job}")
    page = watched.page
    expect(page.get_by_role("tab", name="Live")).to_have_attribute("aria-selected", "true")
    page.get_by_role("tab", name="Search").click()
    rows = page.locator(".found .ln")
    page.get_by_label("words", exact=True).fill('"step 7"')
    page.keyboard.press("Enter")
    expect(rows).to_have_count(1)
    expect(rows.locator("mark").first).to_have_text("step")
    page.get_by_label("words", exact=True).fill("STEP")
    page.keyboard.press("Enter")
    expect(rows).to_have_count(200)
    page.get_by_role("button", name="older").click()
    expect(rows).to_have_count(251)
    expect(page.get_by_role("button", name="older")).to_have_count(0)
    page.get_by_label("rank searched").select_option("1")
    expect(rows).to_have_count(1)
    expect(rows).to_contain_text("ERROR: step lost")
    page.get_by_label("words", exact=True).fill("?!")
    page.keyboard.press("Enter")
    expect(page.get_by_role("alert")).to_contain_text("no letter and no digit")
    clean(watched)


def test_the_colours_are_the_systems_until_chosen_and_the_choice_stays(fed: Threaded, wide: BrowserContext) -> None:
    watched = opened(wide, fed.world.dashboard.url)
    page = watched.page
    button = page.locator("button.theme")
    expect(button).to_contain_text("auto")
    button.focus()
    page.keyboard.press("Enter")
    expect(button).to_contain_text("light")
    expect(page.locator("body")).not_to_have_class(re.compile("body--dark"))
    button.click()
    page.reload()
    expect(button).to_contain_text("dark")
    expect(page.locator("body")).to_have_class(re.compile("body--dark"))
    clean(watched)


def test_an_unknown_job_is_said_to_be_unknown(fed: Threaded, wide: BrowserContext) -> None:
    watched = opened(wide, f"{fed.world.dashboard.url}/jobs/job-nobody")
    expect(watched.page.locator("h1")).to_have_text("No such job")
    watched.page.get_by_role("link", name="All jobs").click()
    expect(watched.page.locator(".tiles")).to_be_visible()


def test_everything_on_the_jobs_page_is_reached_by_the_keyboard(fed: Threaded, wide: BrowserContext) -> None:
    page = opened(wide, fed.world.dashboard.url).page
    expect(page.locator("tr[data-id=job-live]")).to_be_visible()
    reached: set[str] = set()
    for _ in range(14):
        page.keyboard.press("Tab")
        reached.add(page.evaluate("document.activeElement.className + ' ' + document.activeElement.type"))
    assert any(text.startswith("brand") for text in reached)
    assert any(text.startswith("theme") for text in reached)
    assert any(text.startswith("tile") for text in reached)
    assert any(text.startswith("name") for text in reached)
    assert any(text.endswith("search") for text in reached)
