"""The pages for people, in a browser: hostile texts, roles, passwords, and a store that fails."""

import json
import subprocess
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import httpx
import pytest
from browser import WIDTHS, browsing, visiting
from hostile_shop import BIDI, HOSTILE, LONG, SCRIPT, TEMPLATE, ZERO, fill, purchase, serving_hostile
from playwright.sync_api import Browser, Error

import mlpkg as ml
from mlpkg import auth
from mlpkg.auth import ROLES
from mlpkg.settings import Settings

PAGES = ("/", "/docs")
WEB = httpx.Client(timeout=60)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with browsing() as browser:
        yield browser


@dataclass
class Shop:
    """A service of hostile texts."""

    address: str
    state: Path

    @property
    def accesses(self) -> list[tuple[str, str]]:
        """Who saw which path, newest first."""
        with closing(ml.open_store(Settings(state=self.state))) as store:
            return [(entry["name"], entry["path"]) for entry in auth.all_accesses(store)]


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    """Served by uvicorn without httptools, and without BentoML."""
    state = fill(tmp_path_factory.mktemp("hostile") / "state")
    with serving_hostile(state, "--http", "h11") as address:
        for number, text in enumerate(HOSTILE):
            id, buyer = (text[:n].encode("utf-8", "replace").decode() for n in (180, 9_000))
            WEB.post(f"{address}/v1/decide", json=purchase(f"{id} {number}", buyer))  # control characters are refused
        yield Shop(address, state)


@pytest.fixture(scope="module")
def tokens(shop: Shop) -> dict[str, str]:
    with closing(ml.open_store(Settings(state=shop.state))) as store:
        return {role: auth.create(store, role, name=f"the {role}", by="a test")[0] for role in ROLES}


@pytest.fixture(scope="module")
def closed(shop: Shop, tokens: dict[str, str]) -> Iterator[Shop]:
    """The same store behind a service that trusts nobody."""
    with serving_hostile(shop.state, MLPKG_TRUST_LOOPBACK="false") as address:
        yield Shop(address, shop.state)


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("path", PAGES)
def test_hostile_texts_are_shown_and_nothing_runs(shop: Shop, browser: Browser, path: str, width: int):
    with visiting(browser, shop.address + path, width) as visit:
        assert visit.response.status == 200
        assert visit.page.title() == visit.page.locator("h1").inner_text()
        assert visit.requests == [shop.address + path] and visit.complaints == []
        assert (
            visit.page.locator("script, img, iframe, form, link, object, embed, [onfocus], [onmouseover]").count() == 0
        )
        assert visit.evaluate("document.documentElement.scrollWidth") == width, "the page does not scroll sideways"
        assert visit.evaluate("getComputedStyle(document.querySelector('nav')).display") == "flex", "it has its style"
        text = visit.page.locator("body").inner_text()
        assert path != "/" or (SCRIPT in text and TEMPLATE in text)
        assert not set(BIDI + ZERO) & set(text) & set("\u202e\u2066\u200b\u2069\0\x1b")
        assert LONG[:301] not in text and len(visit.response.body()) < 200_000


def test_a_page_of_a_million_letters_is_small_and_stays_together(shop: Shop, browser: Browser):
    """No cell is higher than three hundred letters need, and none covers another one."""
    with visiting(browser, shop.address, 1280) as visit:
        heights = visit.evaluate("[...document.querySelectorAll('td')].map(cell => cell.offsetHeight)")
        assert len(heights) > 60 and max(heights) < 800
        outside = """[...document.querySelectorAll('td *')].filter(
            part => part.getBoundingClientRect().right > part.closest('td').getBoundingClientRect().right + 1).length"""
        assert visit.evaluate(outside) == 0


@pytest.mark.parametrize("path", PAGES)
def test_a_screen_reader_and_a_keyboard_find_their_way(shop: Shop, browser: Browser, path: str):
    with visiting(browser, shop.address + path, 390) as visit:
        page = visit.page
        assert page.locator("html").get_attribute("lang") == "en" and page.locator("h1, main").count() == 2
        levels = visit.evaluate("[...document.querySelectorAll('h1,h2,h3,h4')].map(h => +h.tagName[1])")
        assert all(b - a <= 1 for a, b in pairwise(levels)), "no level is left out"
        assert page.locator("table:not(:has(caption)), th:not([scope])").count() == 0
        page.keyboard.press("Tab")
        assert visit.evaluate("document.activeElement.textContent") == "Overview"
        assert page.locator(".scroll:not([tabindex='0'][role='region'][aria-label])").count() == 0


def test_light_and_dark_can_both_be_read(shop: Shop, browser: Browser):
    """The contrast of all colours of text with the paper is at least 4.5 to 1 (WCAG AA)."""
    contrast = """(() => {
        const light = c => { const [r, g, b] = c.match(/[0-9]+/g).map(x => x / 255)
            .map(x => x <= .03928 ? x / 12.92 : ((x + .055) / 1.055) ** 2.4); return .2126 * r + .7152 * g + .0722 * b };
        const paper = light(getComputedStyle(document.body).backgroundColor) + .05;
        return [...document.querySelectorAll('body, a, caption, dt, th')].map(part => {
            const ink = light(getComputedStyle(part).color) + .05;
            return Math.max(ink / paper, paper / ink) })})()"""
    papers = set()
    for scheme in ("light", "dark"):
        with visiting(browser, shop.address, color_scheme=scheme) as visit:
            assert min(visit.evaluate(contrast)) >= 4.5
            papers.add(visit.evaluate("getComputedStyle(document.body).backgroundColor"))
    assert len(papers) == 2


def test_the_record_of_a_decision_is_one_click_away(shop: Shop, browser: Browser):
    with visiting(browser, shop.address) as visit:
        links = visit.page.locator("td a")
        assert links.count() > 5
        for number in range(links.count()):
            with visit.page.expect_navigation() as navigation:
                links.nth(number).click()
            assert navigation.value.status == 200, "a record, whatever the id is"
            assert navigation.value.request.headers.get("referer") is None
            assert set(navigation.value.json()) >= {"event", "action", "features"}
            visit.page.go_back()
        for address in ("metrics", "v1/models", "v1/catalog", "v1/access"):
            assert WEB.get(f"{shop.address}/{address}").status_code == 200
            assert visit.page.locator(f"main a[href='{address}']").count() == 1


def test_a_line_to_copy_decides(shop: Shop, browser: Browser):
    with visiting(browser, f"{shop.address}/docs") as visit:
        line = visit.page.locator("section", has_text="/v1/decide").first.locator("pre").first.inner_text()
    done = subprocess.run(["bash", "-c", f"{line} --silent"], capture_output=True, text=True, timeout=60)
    assert json.loads(done.stdout)["event"] == "id-1", done


@pytest.mark.parametrize("path", PAGES)
def test_a_browser_may_run_load_send_and_keep_nothing(shop: Shop, path: str):
    headers = WEB.get(shop.address + path).headers
    policy = dict(rule.split(" ", 1) for rule in headers["content-security-policy"].split("; "))
    assert policy.pop("style-src").startswith("'sha256-")
    assert policy == dict.fromkeys(("default-src", "base-uri", "form-action", "frame-ancestors"), "'none'")
    assert (headers["x-content-type-options"], headers["cache-control"]) == ("nosniff", "no-store")
    assert (headers["referrer-policy"], headers["x-frame-options"]) == ("no-referrer", "DENY")
    assert headers["content-type"] == "text/html; charset=utf-8"


def test_a_browser_asks_for_a_password_and_the_token_is_the_password(
    closed: Shop, tokens: dict[str, str], browser: Browser
):
    answer = WEB.get(closed.address, headers={"accept": "text/html"})
    assert (answer.status_code, answer.headers["www-authenticate"]) == (401, 'Basic realm="mlpkg", charset="UTF-8"')
    assert "The password is a token" in answer.text
    login = {"username": "ann", "password": tokens["auditor"]}
    with visiting(browser, f"{closed.address}/", http_credentials=login) as visit:
        assert visit.response.status == 200 and SCRIPT in visit.page.locator("main").inner_text()
        with visit.page.expect_navigation() as navigation:
            visit.page.locator("td a").first.click()
        assert navigation.value.status == 200, "the record too"
    for wrong in (None, login | {"password": "mlpkg_1_2"}):
        try:
            with visiting(browser, closed.address, http_credentials=wrong) as visit:
                status = visit.response.status
        except Error as error:  # it asked for a password, and nobody typed one
            status = 401 if "INVALID_AUTH_CREDENTIALS" in str(error) else 0
        assert status == 401


def test_a_password_is_for_reading_only(closed: Shop, tokens: dict[str, str]):
    """A page of somebody else can make a browser send a form, with the password that the browser knows."""
    for role in ROLES:
        for path in ("/v1/decide", "/v1/events/purchases", "/"):
            answer = WEB.post(closed.address + path, json=purchase("x"), auth=("ann", tokens[role]))
            assert (answer.status_code, answer.headers["www-authenticate"]) == (401, 'Bearer error="invalid_token"')
    for site in ("cross-site", "same-site"):
        headers = {"sec-fetch-site": site, "accept": "text/html"}
        answer = WEB.get(closed.address, auth=("ann", tokens["auditor"]), headers=headers)
        assert answer.status_code == 403 and answer.headers["content-type"].startswith("text/html")


@pytest.mark.parametrize("role", ROLES)
def test_a_role_sees_what_it_may_read_and_a_word_for_the_rest(closed: Shop, tokens: dict[str, str], role: str):
    before = len(closed.accesses)
    headers = {"authorization": f"Bearer {tokens[role]}"}
    answer = WEB.get(f"{closed.address}/", headers=headers)
    assert answer.status_code == 200
    shown = {
        "models": "Active since" in answer.text,
        "decisions": 'href="v1/decisions/' in answer.text,
        "metrics": "Made by the fallback" in answer.text,
        "events": "<caption>The newest dead letters" in answer.text,
    }
    assert {permission for permission, is_shown in shown.items() if is_shown} == ROLES[role] & shown.keys()
    assert answer.text.count(f"Not for the role {role}; ") == 4 - sum(shown.values()) + (not shown["metrics"])
    seen = [(f"the {role}", "/")] * bool({"models", "decisions", "events"} & ROLES[role])
    assert closed.accesses[: len(closed.accesses) - before] == seen
    for path in ("metrics", "v1/models", "v1/catalog", "v1/access"):
        linked = f'<a href="{path}">' in answer.text
        assert linked == (WEB.get(f"{closed.address}/{path}", headers=headers).status_code == 200)


def test_programs_get_no_page_and_no_password_is_asked_of_them(closed: Shop):
    for method, path in (("GET", "/"), ("GET", "/v1/decisions"), ("POST", "/")):
        answer = WEB.request(method, closed.address + path)
        assert (answer.status_code, answer.headers["www-authenticate"]) == (401, "Bearer")
        assert answer.headers["content-type"] == "application/problem+json"
