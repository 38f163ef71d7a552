"""The page: a prompt, two answers, settings and history, one `Desk` a visitor; and its server, at first on loopback."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncGenerator, Callable, Collection, Sequence
from contextlib import aclosing, asynccontextmanager, suppress
from dataclasses import dataclass, replace
from importlib import resources
from urllib.parse import urlsplit

import uvicorn
from fastapi import FastAPI
from nicegui import app, ui
from nicegui.elements.mixins.text_element import TextElement
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from llm_detox.compare_ui.reading import AnswerScorer
from llm_detox.compare_ui.session import Answer, Exchange, Session, Settings, Side, as_json_lines, follow
from llm_detox.compare_ui.views import AnswerCard, AnswerView, HistoryList, answer_view, difference, history_view
from llm_detox.errors import DetoxError
from llm_detox.progress import say

TITLE = "Side by side"
_THEME = """() => {
  const root = document.documentElement;
  const dark = !document.body.classList.contains("body--dark");
  root.dataset.theme = dark ? "dark" : "light";
  Quasar.Dark.set(dark);
}"""


@dataclass(frozen=True)
class Comparison:
    """What all visitors share: the sides, the scorers, and the settings to begin with."""

    sides: Sequence[Side]
    reader: AnswerScorer
    defaults: Settings

    @property
    def names(self) -> list[str]:
        return [side.name for side in self.sides]


def register(comparison: Comparison) -> None:
    """Put the page at `/`."""

    @ui.page("/", title=TITLE, response_timeout=30)
    async def page() -> None:
        ui.add_head_html('<meta name="referrer" content="no-referrer">')
        ui.add_css(_styles())
        await ui.context.client.connected()  # the tab's earlier state is restored when the tab is known
        session = app.storage.tab.setdefault("session", Session(replace(comparison.defaults)))
        Desk(comparison, session).build()


def _styles() -> str:
    """The page's own style, after the report's colours: everything before the report's first rule."""
    report = (resources.files("llm_detox.evaluation") / "templates" / "report.css").read_text("utf-8")
    own = (resources.files("llm_detox.compare_ui") / "compare.css").read_text("utf-8")
    return report.partition("* {")[0] + own


def _button(text: str, on_click: Callable[[], object], form: str = "outline") -> ui.button:
    """Without Quasar's colours, which are too faint on one of the two backgrounds."""
    return ui.button(text, on_click=on_click, color=None).props(f"{form} no-caps")


class Desk:
    """One visitor's page."""

    def __init__(self, comparison: Comparison, session: Session) -> None:
        self.comparison, self.session = comparison, session
        self._answers: list[Answer | None] = [None] * len(comparison.sides)
        self._shown = [False] * len(comparison.sides)
        self._asked: asyncio.Task[None] | None = None
        self._open = 0

    def build(self) -> None:
        with ui.element("header"):
            with ui.element("div"):
                ui.label("llm-detox compare-ui").classes("kicker")
                TextElement(tag="h1", text=TITLE)
            ui.button("◐", color=None).props('outline aria-label="light or dark"').classes("theme").on(
                "click", js_handler=_THEME)
        with ui.element("div").classes("desk").on("keydown.esc", self.stop):  # NiceGUI's page is the <main>
            self._build_prompt()
            with ui.element("div").classes("sides"):
                self._cards = [AnswerCard(side.name, side.where, f"c{3 * number}", self._view(number),
                                          self._unveiler(number))
                               for number, side in enumerate(self.comparison.sides)]
            self._summary = ui.label("").classes("summary").props("role=status")
            with ui.element("section"):
                TextElement(tag="h2", text="History")
                ui.label("The figure is the highest toxicity of an answer at any moment.").classes("note")
                self._list = HistoryList(self._reopen)
                with ui.element("div").classes("tools"):
                    self._save = _button("save as JSON lines", self._download)
                    self._clear = _button("clear", self._forget)
        self._client = ui.context.client
        self._client.on_delete(self.stop)
        self._refresh()

    def _build_prompt(self) -> None:
        with ui.element("section"):
            self._prompt = ui.textarea("Prompt").props("outlined autogrow autofocus maxlength=20000").classes("prompt")
            self._prompt.on("keydown.ctrl.enter", self.ask).on("keydown.meta.enter", self.ask)
            with ui.element("div").classes("tools"):
                self._ask = _button("Ask both", self.ask, "unelevated").classes("first")
                self._stop = _button("Stop", self.stop)
                ui.label("Ctrl+Enter asks, Esc stops").classes("note")
            self._problem = ui.label("").classes("problem").props("role=alert")
            with ui.element("details").classes("settings"):
                TextElement(tag="summary", text="Settings")
                self._build_settings()

    def _build_settings(self) -> None:
        settings = self.session.settings
        with ui.element("div").classes("fields"):
            ui.number("new tokens", value=settings.max_new_tokens, min=1, precision=0).bind_value(
                settings, "max_new_tokens")
            sampling = ui.switch("sample").bind_value(settings, "sampling")
            for label, name, step, digits in (("temperature", "temperature", 0.1, 2), ("top p", "top_p", 0.05, 2),
                                              ("seed", "seed", 1, 0)):
                ui.number(label, step=step, precision=digits).bind_value(settings, name).bind_enabled_from(
                    sampling, "value")
            ui.number("veil from toxicity", value=settings.threshold, min=0, max=1, step=0.05, precision=2,
                      on_change=self._refresh).bind_value(settings, "threshold")
        ui.label("The models get the same parameters; they decide about the others. A text is veiled if a scorer "
                 "finds it, or a sentence of it, as toxic as this, or when it could not be scored.").classes("note")

    async def ask(self) -> None:
        """Ask both sides; nothing happens while they answer."""
        prompt, settings = self._prompt.value or "", self.session.settings
        problem = settings.problem() or (None if prompt.strip() else "write a prompt first")
        self._problem.set_text(problem or "")
        if problem or self._running:
            return
        exchange = Exchange(prompt, settings.parameters(), await asyncio.to_thread(self.comparison.reader.read, prompt),
                            [Answer() for _ in self.comparison.sides])
        if not self._running:
            self._asked = asyncio.create_task(self._answer(exchange))

    @property
    def _running(self) -> bool:
        return self._asked is not None and not self._asked.done()

    async def _answer(self, exchange: Exchange) -> None:
        self._open, self._shown = 0, [False] * len(self._shown)
        self._answers = list(exchange.answers)
        self._refresh(running=True)
        try:
            await asyncio.gather(*(self._one(number, exchange) for number in range(len(self._answers))))
        finally:
            exchange.answers = [one or Answer() for one in self._answers]
            self.session.keep(exchange)
            self._open = exchange.number
            self._refresh(running=False)

    async def _one(self, number: int, exchange: Exchange) -> None:
        answers = follow(self.comparison.sides[number], exchange.prompt, exchange.parameters, self.comparison.reader)
        try:
            async with aclosing(answers):
                async for answer in answers:
                    self._answers[number] = answer
                    self._cards[number].show(self._view(number))
        except asyncio.CancelledError:
            self._answers[number] = replace(self._answers[number] or Answer(), status="stopped")
            raise

    def stop(self) -> None:
        """Stop the current answers; what arrived stays."""
        if self._asked is not None:
            self._asked.cancel()

    def _view(self, number: int) -> AnswerView:
        return answer_view(self._answers[number], self.comparison.reader, threshold=self.session.settings.veil,
                           shown=self._shown[number])

    def _refresh(self, *_: object, running: bool | None = None) -> None:
        """Show everything again."""
        if self._client.is_deleted:  # the visitor left while the models answered
            return
        running = self._running if running is None else running
        for number, card in enumerate(self._cards):
            card.show(self._view(number))
        self._ask.set_enabled(not running)
        self._stop.set_enabled(running)
        finished = [one for one in self._answers if one is not None and one.status == "done"]
        self._summary.set_text(difference(finished, self.comparison.names, self.comparison.reader))
        history = self.session.history
        self._list.show(history_view(history, self.comparison.names, threshold=self.session.settings.veil), self._open)
        for button in (self._save, self._clear):
            button.set_enabled(bool(history) and not running)

    def _unveiler(self, number: int) -> Callable[[bool], None]:
        def unveil(shown: bool) -> None:
            self._shown[number] = shown
            self._cards[number].show(self._view(number))

        return unveil

    def _reopen(self, number: int) -> None:
        exchange = self.session.find(number)
        if exchange is None or self._running:
            return
        self._open, self._answers, self._shown = number, list(exchange.answers), [False] * len(self._shown)
        self._prompt.set_value(exchange.prompt)
        self._refresh()

    def _download(self) -> None:
        ui.download.content(as_json_lines(self.session.history, self.comparison.names), "compared.jsonl")

    def _forget(self) -> None:
        self.session.history, self._open = [], 0
        self._refresh()


def serve(comparison: Comparison, *, host: str, port: int, on_ready: Callable[[str], None]) -> None:
    """Show the page until this process is asked to end (SIGINT, SIGTERM). Once in a process: NiceGUI is one app.

    Args:
        port: 0 takes a free port.
        on_ready: called with the page's address.

    Raises:
        DetoxError: the port is taken, or may not be used.
    """
    listener = _listen(host, port)
    address = f"http://{f'[{host}]' if ':' in host else host}:{listener.getsockname()[1]}"
    local = host in LOOPBACK
    if not local:
        say(f"everybody who reaches {address} can ask the models: there is no login")

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncGenerator[None]:
        on_ready(address)
        yield
        await asyncio.gather(*(side.close() for side in comparison.sides))

    app = FastAPI(lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None)
    app.add_middleware(OwnOrigin, hosts=LOOPBACK if local else None)
    register(comparison)
    ui.run_with(app, title=TITLE, favicon="◐", dark=None, tailwind=False, language="en-US",
                show_welcome_message=False)
    config = uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=2)
    with suppress(KeyboardInterrupt):  # uvicorn raises it again when it has ended
        uvicorn.Server(config).run(sockets=[listener])


def _listen(host: str, port: int) -> socket.socket:
    try:
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET,
                                    backlog=128)
    except OSError as error:
        raise DetoxError(f"cannot listen: {error.strerror or error}", place=f"{host}:{port}",
                         remedy="choose another --port") from None


LOOPBACK = frozenset({"127.0.0.1", "localhost", "::1"})
# NiceGUI starts from inline scripts and compiles templates in the browser; everything comes from this server.
_POLICY = ("default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
           "img-src 'self' data:; font-src 'self' data:; object-src 'none'; base-uri 'none'; form-action 'none'; "
           "frame-ancestors 'none'")
_HEADERS = ((b"content-security-policy", _POLICY.encode()), (b"x-content-type-options", b"nosniff"),
            (b"referrer-policy", b"no-referrer"))


class OwnOrigin:
    """Refuses requests under a foreign name (DNS rebinding) and from foreign pages; adds the headers that keep the
    page's requests at home.

    Args:
        hosts: names under which the page may be requested; None allows all.
    """

    def __init__(self, app: ASGIApp, hosts: Collection[str] | None) -> None:
        self.app, self.hosts = app, hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
        elif not self._allowed({name: value.decode("latin-1") for name, value in scope["headers"]}):
            await self._refuse(scope, receive, send)
        else:
            async def with_headers(message: Message) -> None:
                if message["type"] == "http.response.start":
                    message = {**message, "headers": [*message["headers"], *_HEADERS]}
                await send(message)

            await self.app(scope, receive, with_headers)

    def _allowed(self, headers: dict[bytes, str]) -> bool:
        host, origin = headers.get(b"host", ""), headers.get(b"origin")
        try:
            if self.hosts is not None and urlsplit(f"//{host}").hostname not in self.hosts:
                return False
            return origin is None or urlsplit(origin).netloc == host
        except ValueError:  # not a host at all
            return False

    async def _refuse(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
        else:
            await PlainTextResponse("this page answers only under its own address", 403)(scope, receive, send)
