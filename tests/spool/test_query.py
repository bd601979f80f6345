from __future__ import annotations

import apsw
from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from qmq.mail import HELD, NULL_SENDER, Address, Entry, Envelope, MemoryBody, Message, Reply, Token
from qmq.spool.query import STATES, Query, parse
from qmq.spool.record import pack

NOW = 1_700_000_000.0
ANN, BOB = Address(b"ann", b"example.org"), Address(b"bob", b"mail.example.com")
LATER = Reply(451, "4.4.1", "No answer\nfrom it")
NEVER = Reply(550, "5.1.1", "no such user")

WORDS = st.sampled_from(["No", "answer", "4.4.1", "451", "45", "from  it", "x\u212a", "\u017f", "é", "K", "s", "\n"])
TEXTS = st.lists(WORDS, max_size=4).map(" ".join)
ADDRESSES = st.builds(
    Address,
    st.sampled_from([b"ann", b"bob", b"", b"\xff"]),
    st.sampled_from([b"example.org", b"a.example.org", b"x", b""]),
)
REPLIES = st.builds(Reply, st.sampled_from([451, 450, 550]), st.sampled_from(["4.4.1", ""]), TEXTS)
SITES = st.sampled_from(
    [b"mx:x.example", b"smtp:Mail.x.example:25 lmtp:/run/x", b"queue:b", b"one", b"smtp:[2001:DB8::1]:26"]
)


def entry(site: bytes = b"mx:x.example", **more: object) -> Entry:
    """An entry for ANN, 100 s old, of 1000 octets, waiting."""
    made = Entry(
        7, Message(Envelope(Token(b"peer", 255), Address(b"s", b"example.net"), (ANN,)), b"", MemoryBody(bytes(1000))),
        site, NOW - 100,
    )  # fmt: skip
    made.due = NOW + 5
    for name, it in more.items():
        setattr(made, name, it)
    return made


@st.composite
def entries(draw: st.DrawFn) -> Entry:
    everybody = draw(st.lists(ADDRESSES, unique=True, max_size=4))
    cut = draw(st.integers(0, len(everybody)))
    envelope = Envelope(Token(b"peer", draw(st.integers(0, 3))), draw(ADDRESSES), tuple(everybody[:cut]))
    made = Entry(1, Message(envelope, b"", MemoryBody(bytes(draw(st.integers(0, 5))))), draw(SITES), NOW)
    made.born = NOW - draw(st.integers(-2, 5))
    made.due = draw(st.sampled_from([None, NOW, HELD]))
    made.attempts = draw(st.integers(0, 4))
    made.bouncing = tuple((one, draw(REPLIES)) for one in everybody[cut:])
    made.last = {one: draw(REPLIES) for one in everybody[:cut] if draw(st.booleans())}
    return made


NUMBERS = st.integers(0, 5).map(str)
QUERIES = st.fixed_dictionaries(
    {},
    optional={
        "id": st.sampled_from(["peer-0", "peer-1 peer-3", "peer-2 other", "peer"]),
        "sender": st.sampled_from(["ann@example.org", "@example.org", "<>", "bob"]),
        "recipient": st.sampled_from(["ann@example.org", "@a.example.org", "bob"]),
        "domain": st.sampled_from(["example.org", ".example.org", "x"]),
        "site": st.sampled_from(["mx:x.example", "one"]),
        "destination": st.sampled_from(["x.example", "MAIL.X.example,one", "/run/x", "b", "2001:db8::1"]),
        "older": NUMBERS, "younger": NUMBERS, "larger": NUMBERS, "smaller": NUMBERS, "attempts": NUMBERS,
        "attempts-below": NUMBERS,
        "error": TEXTS.filter(str.strip),
        "state": st.sampled_from(STATES),
    },
)  # fmt: skip


class QueryTests(SynchronousTestCase):
    def says(self, made: Entry, **words: str) -> bool:
        return parse({word.replace("_", "-"): text for word, text in words.items()}, NOW).matches(made)

    @given(entries(), QUERIES)
    def test_sql(self, made: Entry, words: dict[str, str]) -> None:
        """SQLite misses nothing that matches, and finds nothing else where only columns are asked for."""
        query = parse(words, NOW)
        where, values = query.where()
        row = (made.due, made.attempts, made.site, made.born, made.message.size, pack(made))
        connection = apsw.Connection(":memory:")
        connection.execute("CREATE TABLE message (due, attempts, site, born, size, record)")
        connection.execute("INSERT INTO message VALUES (?, ?, ?, ?, ?, ?)", row)

        ((found,),) = connection.execute(f"SELECT count(*) FROM message WHERE {where or 'true'}", values)

        columns = Query(
            born_by=query.born_by, born_after=query.born_after, larger=query.larger, smaller=query.smaller,
            attempts=query.attempts, attempts_below=query.attempts_below, state=query.state,
        )  # fmt: skip
        if query.matches(made):
            self.assertEqual(found, 1)
        if not query.unpacks and query.state != "in-hand":
            self.assertEqual(bool(found), columns.matches(made))

    @given(entries(), QUERIES)
    def test_all_match(self, made: Entry, words: dict[str, str]) -> None:
        """A query of several words means what each of them means."""
        each = [parse({word: text}, NOW).matches(made) for word, text in words.items()]

        self.assertEqual(parse(words, NOW).matches(made), all(each))

    @given(st.dictionaries(st.sampled_from(["id", "sender", "error", "older", "state", "destination", "x"]), st.text()))
    def test_any_text(self, words: dict[str, str]) -> None:
        """Whatever is asked, the answer is a query or a text."""
        try:
            parse(words, NOW).matches(entry())
        except ValueError as error:
            self.assertTrue(str(error))

    def test_id(self) -> None:
        """An id is one of several, and all of it."""
        self.assertTrue(self.says(entry(), id="peer-fe peer-ff"))
        self.assertFalse(self.says(entry(), id="peer-f peer-fff"))
        self.assertEqual(parse({"id": "a-b-ff nonsense x-0ff x-" + "f" * 16}, NOW).tokens, [(b"a-b", 255)])

    def test_sender(self) -> None:
        """A sender is an address, a whole domain, or nobody."""
        self.assertTrue(self.says(entry(), sender="s@EXAMPLE.net"))
        self.assertTrue(self.says(entry(), sender="@example.net"))
        self.assertFalse(self.says(entry(), sender="<>"))
        bounce = entry(message=Message(Envelope(Token(b"p", 1), NULL_SENDER, (ANN,)), b"", MemoryBody(b"")))
        self.assertTrue(self.says(bounce, sender="<>"))
        self.assertFalse(self.says(bounce, sender="s@example.net"))

    def test_recipient(self) -> None:
        """A recipient counts as long as it is to do or bouncing."""
        bouncing = entry(bouncing=((BOB, NEVER),))
        for words in ({"recipient": "bob@mail.example.com"}, {"recipient": "@mail.example.com"}):
            self.assertTrue(self.says(bouncing, **words))
            self.assertFalse(self.says(entry(), **words))
        self.assertTrue(self.says(bouncing, recipient="ann@example.org"))

    def test_domain(self) -> None:
        """A domain is itself alone, or with a dot in front what is below it."""
        bouncing = entry(bouncing=((BOB, NEVER),))
        self.assertTrue(self.says(bouncing, domain="Mail.Example.com."))
        self.assertTrue(self.says(bouncing, domain=".example.com"))
        self.assertFalse(self.says(bouncing, domain="example.com"))
        self.assertFalse(self.says(bouncing, domain=".example.org"))

    def test_destination(self) -> None:
        """A destination is a site, one of its hops, or the host or domain named in it, in any case of letters."""
        for site, names in {
            b"smtp:Mail.x.example:25": ["smtp:mail.x.example:25", "mail.x.example", "MAIL.X.EXAMPLE:25", "y, mail.x.example."],
            b"mx:x.example": ["x.example", "mx:x.example"],
            b"mx:x.example smtp:[IPv6:2001:db8::1]:26": ["x.example", "2001:DB8::1", "mx:x.example smtp:[ipv6:2001:db8::1]:26"],
            b"lmtp:/run/lmtp.sock": ["/run/lmtp.sock"],
            b"queue:other": ["other", "queue:other"],
            b"customer1": ["customer1"],
        }.items():  # fmt: skip
            for name in names:
                self.assertTrue(self.says(entry(site), destination=name), name)
            self.assertFalse(self.says(entry(site), destination="example,smtp,mx,25,mail"))

    def test_age(self) -> None:
        """Older and younger part all there is at the second."""
        self.assertTrue(self.says(entry(), older="100"))
        self.assertFalse(self.says(entry(), younger="100"))
        self.assertFalse(self.says(entry(), older="100.5"))
        self.assertTrue(self.says(entry(), younger="100.5"))

    def test_size(self) -> None:
        """Larger and smaller leave out what is just as large."""
        self.assertTrue(self.says(entry(), larger="999", smaller="1001"))
        self.assertFalse(self.says(entry(), larger="1000"))
        self.assertFalse(self.says(entry(), smaller="1000"))

    def test_attempts(self) -> None:
        """So many attempts or more, or fewer."""
        made = entry(attempts=3)
        self.assertTrue(self.says(made, attempts="3", attempts_below="4"))
        self.assertFalse(self.says(made, attempts="4"))
        self.assertFalse(self.says(made, attempts_below="3"))

    def test_error(self) -> None:
        """A reply is found by its code, status and text, over its lines, whatever the case of its letters."""
        made = entry(last={ANN: LATER}, bouncing=((BOB, NEVER),))
        for text in ("451 4.4.1 no ANSWER from it", "451", "answer from", "4.4", "550 5.1.1 no such", "user"):
            self.assertTrue(self.says(made, error=text), text)
        for text in ("452", "451 4.4.1 no such", "it 550", "4.4.1  5"):
            self.assertFalse(self.says(made, error=text), text)

    def test_state(self) -> None:
        """An entry waits, is held, or is in hand; besides, it may bounce or move."""
        for made, states in (
            (entry(), {"waiting"}),
            (entry(due=HELD), {"held"}),
            (entry(due=None), {"in-hand"}),
            (entry(bouncing=((BOB, NEVER),)), {"waiting", "bouncing"}),
            (entry(b"queue:other"), {"waiting", "moving"}),
            (entry(b"queue:other", due=HELD), {"held"}),
        ):
            self.assertEqual({state for state in STATES if self.says(made, state=state)}, states)

    def test_refused(self) -> None:
        """What cannot be meant is an error that names the word."""
        for word, text in {
            "colour": "red", "older": "1h", "younger": "-1", "larger": "10M", "smaller": "", "attempts": "1.5",
            "attempts-below": "x", "state": "lost", "id": " ", "recipient": "", "domain": "", "destination": " , ",
            "error": " ",
        }.items():  # fmt: skip
            error = self.assertRaises(ValueError, parse, {word: text}, NOW)
            self.assertIn(word, str(error))
