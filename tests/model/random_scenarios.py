"""Random small scenarios, each from one number, in which everything that the law speaks of happens often and at once.

Times lie on a coarse grid, so that ends, deadlines and commands of every kind coincide; and the maker plays the law
along as it writes, so that it can aim: at the instant of the next deadline, at jobs that run, at sessions that live.
`make_scenario(seed)` returns what the YAML of a scenario file would be read as; `to_yaml` writes it in the style of
those files.
"""

import random
from collections.abc import Mapping
from typing import Any

import yaml

from tests.model.law import Job, Law, Session, to_ns, to_seconds

USERS = ("lab/alice", "lab/bob", "lab/team/carol", "lab/team/dan", "uni/eve", "uni/fred", "gina", "uni/x/y/hal")
HOLDERS = ("lab", "lab/alice", "lab/team", "uni", "uni/eve", "gina", "uni/x", "nobody")
ACCOUNTS = ("lab", "lab/team", "uni", "uni/x")
THEMES = ("sessions", "batches", "windows", "losses", "closes", "cancels", "calibrations", "long", "small fits", "tree")
BROKEN_PATHS = ("", "lab//alice", "lab/al ice", "/lab", "lab/alice/", "a/b/c/d/e/f/g/h/i", "x" * 65)


class Maker:
    """Makes one scenario."""

    def __init__(self, seed: int, beyond_files: bool) -> None:
        self.random = random.Random(seed)
        self.beyond_files = beyond_files
        self.seed = seed
        self.now = 0.0
        self.made = 0
        self.jobs: list[str] = []
        self.sessions: list[str] = []
        self.session_of: dict[str, tuple[str, str]] = {}
        self.owner: dict[str, str] = {}
        self.reservations: list[tuple[str, str, str]] = []
        self.step = self.random.choice((1, 1, 1, 1, 0.5, 2, 0.001))
        # What the scenario is rich in: each theme makes some events and details more frequent.
        self.themes = set(self.random.sample(THEMES, self.random.randint(0, 3)))

    def chance(self, p: float) -> bool:
        return self.random.random() < p

    def length(self, *choices: float) -> float:
        """One of the numbers, in steps of the scenario's grid."""
        value = round(self.random.choice(choices) * self.step, 3)
        return int(value) if value == int(value) else value

    def name(self, prefix: str) -> str:
        self.made += 1
        return f"{prefix}{self.made}"

    def make(self) -> dict[str, Any]:
        r = self.random
        self.users = r.sample(USERS, r.randint(2, len(USERS)) if "tree" in self.themes else r.randint(2, 4))
        scenario: dict[str, Any] = {"name": f"random {self.seed}"}
        if self.chance(0.7):
            scenario["profile"] = r.choice(("runtime-2023", "runtime-2024"))
        if self.chance(0.4):
            scenario["half_life"] = r.choice((10, 20, 60, 1000))
        if self.chance(0.5):
            nodes = [*self.users, *ACCOUNTS]
            scenario["shares"] = {path: r.choice((1, 2, 3, 0.5, 10)) for path in r.sample(nodes, r.randint(1, 4))}
        self.device_names = [f"q{i + 1}" for i in range(r.choice((1, 1, 1, 2, 2, 3)))]
        scenario["devices"] = {name: self.settings() for name in self.device_names}
        events: list[dict[str, Any]] = []
        self.law = Law({**scenario, "events": []})
        pause = r.choice((0.15, 0.3, 0.45, 0.6))
        for _ in range(r.choice((8, 16, 30, 45))):
            burst = [{"at": self.at(), **event} for event in self.burst()]  # a restart has moved the time
            self.law.events += [(to_ns(event["at"]), event) for event in burst]
            events += burst
            if self.chance(pause):
                self.wait()
        scenario["events"] = events
        automatic = any("calibration_interval" in (settings or {}) for settings in scenario["devices"].values())
        if automatic or self.chance(0.15):
            scenario["until"] = round(self.now + self.length(0, 1, 5, 10, 40, 100), 3)
        return scenario

    def wait(self) -> None:
        """Go on by a few steps, or to the instant at which something is going to happen by itself."""
        self.law.play_before(to_ns(self.now) + 1)
        due = self.law.next_instant()
        if due is not None and due <= to_ns(self.now + 60 * self.step) and self.chance(0.4):
            self.now = to_seconds(due)
        else:
            self.now += self.length(1, 1, 1, 2, 2, 3, 5, 8) if self.chance(0.95) else self.length(15, 30)
        self.law.play_before(to_ns(self.now))

    def at(self) -> float:
        now = round(self.now, 3)
        return int(now) if now == int(now) else now

    def settings(self) -> dict[str, Any]:
        r = self.random
        settings: dict[str, Any] = {}
        if self.chance(0.4):
            settings["profile"] = r.choice(("runtime-2023", "runtime-2024"))
        choices: dict[str, list[Any]] = {
            "interactive_ttl_dedicated": [self.length(0, 1, 2, 3, 5)],
            "interactive_ttl_batch": [self.length(0, 1, 2, 3, 5)],
            "max_time": [self.length(2, 5, 8, 12, 20, 30, 50, 100)],
            "unused_ttl": [self.length(1, 2, 3, 5, 10, 15, 20)],
            "on_close": ["DRAIN", "FAIL_QUEUED"],
            "on_expiry": ["FAIL", "FAIR_SHARE", "FAIR_SHARE"],
            "session_cache_ttl": [self.length(0, 1, 2, 3, 5, 10, 20)],
            "first_job": ["REQUIRED", "INDEPENDENT"],
            "calibration": ["BEFORE_SESSIONS", "OUTSIDE_DEDICATED"],
            "limit": [self.length(3, 5, 8, 10, 20)],
            "max_attempts": [1, 2, 3],
            "default_estimate": [self.length(1, 2, 5)],
            "calibration_duration": [self.length(1, 2, 3, 5, 12)],
        }
        rate = r.choice((0.3, 0.6, 0.9))
        for key, values in choices.items():
            if self.chance(rate * (0.25 if key == "limit" else 1)):
                settings[key] = r.choice(values)
        if self.chance(0.4 if "calibrations" in self.themes else 0.1):
            settings["calibration_interval"] = self.length(1, 3, 5, 10, 20, 20)
            settings.setdefault("calibration_duration", self.length(1, 2, 3, 12))
        return settings

    # --- events ------------------------------------------------------------------------------------------------------

    def burst(self) -> list[dict[str, Any]]:
        """One event, or a few that belong together."""
        rare = self.rare_event() if self.chance(0.2) else None
        if rare is not None:
            events = [rare]
        elif not self.sessions or (len(self.sessions) < 6 and self.chance(0.12)):
            events = [self.reserve()] if self.chance(0.5 if "windows" in self.themes else 0.1) else []
            events.append(self.create_session())
            events += [self.submit_to_session(self.sessions[-1]) for _ in range(self.random.choice((0, 1, 2, 3, 4)))]
        elif self.chance(0.12 if "closes" in self.themes else 0.03):
            name = self.session()
            events = [self.wind_up(name) for _ in range(self.random.choice((2, 2, 3)))]
        elif "windows" in self.themes and self.chance(0.15):
            events = [self.reserve_against(self.session())]
        else:
            events = [self.event()]
        if len(self.device_names) == 1 and self.chance(0.5):
            for event in events:
                if event.get("device") == "q1":
                    del event["device"]
        return events

    def rare_event(self) -> dict[str, Any] | None:
        """One for a state that seldom lasts, if there is such a state now."""
        living = [session for session in self.law.sessions.values() if session.state != "CLOSED"]
        choices: list[dict[str, Any]] = []
        for session in living:
            run = session.device.run
            name = session.name
            if run and run.job.session is session and run.outcome == "WORKER_LOST":
                choices += [self.wind_up(name), {"close_session": name, "pending": "FAIL_QUEUED"}]
            if session.state == "INACTIVE":
                choices += [self.wind_up(name), self.submit_to_session(name)]
            if session.state in ("DRAINING", "INACTIVE") and session.first_job:
                choices.append({"cancel": session.first_job.name})
            if session.state == "ACTIVE" and self.chance(0.3):
                choices.append(self.reserve_against(name))
            if session.state == "ACTIVE" and run and run.job.job_class == "CALIBRATION":
                queued = self.law.queued(session)
                choices.append({"cancel": queued[-1].name} if queued else self.submit_to_session(name))
            if session.idle_left is not None:
                choices.append({**self.calibrate(), "device": session.device.name})
            if session.reservation and session.first_job and session.first_job.state in ("QUEUED", "RUNNING"):
                choices.append({"close_session": name, "pending": "DRAIN"})
        return self.random.choice(choices) if choices else None

    def event(self) -> dict[str, Any]:
        themes = self.themes
        kinds = {
            self.submit_to_session: 34,
            self.submit: 20,
            self.create_session: 3 if len(self.sessions) < 6 else 0,
            self.calibrate: 8 if "calibrations" in themes else 2,
            self.reserve: 14 if "windows" in themes else 3,
            self.cancel: (14 if "cancels" in themes else 4) if self.jobs else 0,
            self.wind_up: 14 if "closes" in themes else 4,
            self.nonsense: 4,
        }
        if self.beyond_files:
            kinds |= {self.set_priority: 5 if self.jobs else 0, self.set_shares: 4, self.resume: 4}
            kinds[self.delete_reservation] = 4 if self.reservations else 0
        return self.random.choices(list(kinds), list(kinds.values()))[0]()

    def device(self) -> str:
        return self.random.choice(self.device_names)

    def job_details(self) -> dict[str, Any]:
        details: dict[str, Any] = {"run": self.length(1, 1, 2, 2, 3, 4, 5, 8, 12)}
        if "long" in self.themes and self.chance(0.3):
            details["run"] = self.length(10, 15, 20)
        if self.chance(0.6):
            details["estimate"] = self.length(1, 1, 2, 2, 3, 4, 5, 8, 12)
        elif self.chance(0.5):
            details["estimate"] = details["run"]
        if "small fits" in self.themes and self.chance(0.8):
            details["estimate"] = self.length(1, 2, 5, 8, 10, 12, 15)
            details["run"] = self.length(1, 1, 2, 2, 3)
        if self.chance(0.1):
            details["limit"] = self.length(1, 2, 3, 5, 8, 15)
        if self.chance(0.25):
            details["priority"] = self.random.choice((-100, -1, 1, 1, 2, 100))
        if self.chance(0.07):
            details["fails"] = True
        if self.chance(0.6 if "losses" in self.themes else 0.07):
            details["worker_lost"] = [self.length(1, 1, 2, 3, 5, 8) for _ in range(self.random.randint(1, 3))]
            if self.chance(0.5):
                details["run"] = self.length(8, 10, 15)
        return details

    def submit(self) -> dict[str, Any]:
        name, user = self.name("j"), self.random.choice(self.users)
        self.jobs.append(name)
        self.owner[name] = user
        return {"submit": name, "user": user, "device": self.device(), **self.job_details()}

    def calibrate(self) -> dict[str, Any]:
        name = self.name("c")
        self.jobs.append(name)
        details = self.job_details()
        for key in ("priority", "estimate"):
            details.pop(key, None)
        return {"submit": name, "class": "CALIBRATION", "device": self.device(), **details}

    def session(self) -> str:
        """One that was created, rather one that lives, of any state."""
        living: dict[str, list[Session]] = {}
        for session in self.law.sessions.values():
            if session.state != "CLOSED":
                living.setdefault(session.state, []).append(session)
                run = session.device.run
                if run and run.job.session is session and run.outcome == "WORKER_LOST":
                    living.setdefault("about to lose a worker", []).append(session)
        if living and self.chance(0.7):
            state = self.random.choice(sorted(living))
            return self.random.choice(living[state]).name
        return self.random.choice(self.sessions[-2:] if self.chance(0.8) else self.sessions)

    def submit_to_session(self, session: str | None = None) -> dict[str, Any]:
        name, session = self.name("j"), session or self.session()
        self.jobs.append(name)
        user, device = self.session_of[session]
        self.owner[name] = user
        event = {"submit": name, "session": session}
        if self.chance(0.1):
            event["user"] = user
        if self.chance(0.1):
            event["device"] = device
        return event | self.job_details()

    def create_session(self) -> dict[str, Any]:
        r = self.random
        name, user, device = self.name("s"), r.choice(self.users), self.device()
        event: dict[str, Any] = {"create_session": name}
        bound = None
        if self.reservations and self.chance(0.5):
            bound, holder, device = r.choice(self.reservations[-2:])
            below = [user for user in self.users if user == holder or user.startswith(holder + "/")]
            if below and self.chance(0.9):
                user = r.choice(below)
        event |= {"user": user, "device": device}
        mode = "BATCH" if self.chance(0.8 if "batches" in self.themes else 0.4) else "DEDICATED"
        if mode == "BATCH" or self.chance(0.7):
            event["mode"] = mode
        if self.chance(0.5):
            event["max_time"] = self.length(1, 3, 5, 8, 8, 12, 20, 30, 50)
        if self.chance(0.4):
            event["interactive_ttl"] = self.length(0, 1, 2, 3, 5)
        if bound:
            event["reservation"] = bound
        self.sessions.append(name)
        self.session_of[name] = (user, device)
        return event

    def reserve(self) -> dict[str, Any]:
        name, device = self.name("r"), self.device()
        near = [h for h in HOLDERS if any(user == h or user.startswith(h + "/") for user in self.users)]
        holder = self.random.choice(near if near and self.chance(0.85) else HOLDERS)
        start = round(self.now + self.length(0, 0, 1, 2, 3, 5, 5, 8, 10, 15), 3)
        ends = [r.end for r in self.law.reservations.values() if r.device.name == device and r.state != "OVER"]
        if ends and self.chance(0.4):  # one that touches another
            start = to_seconds(max(ends))
        end = round(start + self.length(1, 2, 3, 5, 8, 10, 15), 3)
        self.reservations.append((name, holder, device))
        return {"reserve": name, "device": device, "holder": holder, "start": start, "end": end}

    def reserve_against(self, session: str) -> dict[str, Any]:
        """A window of somebody else on the session's device, a little ahead."""
        user, device = self.session_of[session]
        event = self.reserve()
        event["holder"] = self.random.choice([h for h in HOLDERS if user != h and not user.startswith(h + "/")])
        event["device"] = device
        event["start"] = round(self.now + self.length(3, 5, 8, 10, 12, 15), 3)
        event["end"] = round(event["start"] + self.length(1, 2, 3, 5), 3)
        self.reservations[-1] = (event["reserve"], event["holder"], device)
        return event

    def asker(self, owner: str | None) -> dict[str, Any]:
        if self.chance(0.7):
            return {}
        return {"user": owner if owner and self.chance(0.6) else self.random.choice(self.users)}

    def cancel(self) -> dict[str, Any]:
        """Of a job: rather one that runs, or the first of its session."""
        jobs = self.law.jobs.values()
        targets: list[list[Job]] = [
            [job for job in jobs if job.state == "RUNNING"],
            [job for job in jobs if job.state == "RUNNING" and job.session],
            [job for job in jobs if job.state == "QUEUED"],
            [job for job in jobs if job.state == "QUEUED" and job.is_first],
            [job for job in jobs if job.is_first and job.session and job.session.state in ("DRAINING", "INACTIVE")],
            [job for job in jobs if job.state == "QUEUED" and job.job_class == "CALIBRATION"],
        ]
        targets = [target for target in targets if target]
        if targets and self.chance(0.75):
            name = self.random.choice(self.random.choice(targets)).name
        else:
            name = self.random.choice(self.jobs[-5:] if self.chance(0.7) else self.jobs)
        return {"cancel": name, **self.asker(self.owner.get(name))}

    def wind_up(self, name: str | None = None) -> dict[str, Any]:
        """A close or cancel of a session."""
        name = name or self.session()
        asker = self.asker(self.session_of[name][0])
        if self.chance(0.35):
            return {"cancel_session": name, **asker}
        pending = {"pending": self.random.choice(("DRAIN", "DRAIN", "FAIL_QUEUED"))} if self.chance(0.7) else {}
        return {"close_session": name, **pending, **asker}

    def set_priority(self) -> dict[str, Any]:
        queued = [job.name for job in self.law.jobs.values() if job.state == "QUEUED"]
        name = self.random.choice(queued if queued and self.chance(0.8) else self.jobs)
        priority = self.random.choice((-100, -1, 0, 1, 2, 100, 101))
        return {"set_priority": name, "priority": priority, **self.asker(self.owner.get(name))}

    def set_shares(self) -> dict[str, Any]:
        path = self.random.choice([*self.users, *ACCOUNTS, "lab//x"])
        return {"set_shares": path, "shares": self.random.choice((1, 2, 3, 0.5, 10, 0, -1))}

    def delete_reservation(self) -> dict[str, Any]:
        return {"delete_reservation": self.random.choice(self.reservations)[0]}

    def resume(self) -> dict[str, Any]:
        """The server was down for a while; half of the times the scheduler is made anew from its state."""
        self.law.play_before(to_ns(self.now) + 1)
        down_from = self.at()
        self.now += self.length(1, 2, 3, 5, 8)
        return {"resume": self.name("u"), "down_from": down_from, "restore": self.chance(0.5)}

    def nonsense(self) -> dict[str, Any]:
        """A command that is (nearly always) refused, sometimes for several reasons at once."""
        r = self.random
        event = r.choice((self.submit, self.create_session, self.reserve, self.calibrate, self.submit_to_session))()
        verb = next(iter(event))
        for _ in range(r.choice((1, 1, 2))):
            match r.randint(0, 7):
                case 0:
                    event["device"] = "nowhere" if self.chance(0.5) else self.device()
                case 1 if verb != "reserve" and event.get("class") != "CALIBRATION":
                    event["user"] = r.choice([*BROKEN_PATHS, *ACCOUNTS, self.users[0] + "/sub", self.users[-1]])
                case 2 if verb == "submit":
                    event[r.choice(("run", "estimate", "limit"))] = r.choice((0, -1))
                case 3 if verb == "submit":
                    event["priority"] = r.choice((101, -101, 1000))
                case 4:
                    if self.made > 1:
                        names = [*self.jobs, *self.sessions, *(name for name, _, _ in self.reservations)]
                        event[verb] = r.choice([name for name in names if name[0] == event[verb][0]])
                case 5 if verb == "submit" and "session" in event and "user" not in event:
                    event["class"] = "CALIBRATION"
                case 5 if verb == "create_session":
                    event[r.choice(("max_time", "interactive_ttl"))] = r.choice((0, -1))
                case 6 if verb == "create_session":
                    event["reservation"] = "r0" if not self.reservations else r.choice(self.reservations)[0]
                case 6 if verb == "submit" and "session" in event:
                    event["session"] = "s0" if self.chance(0.5) else self.session()
                case 7 if verb == "reserve":
                    match r.randint(0, 3):
                        case 0:
                            event["holder"] = r.choice(BROKEN_PATHS)
                        case 1:
                            event["end"] = event["start"]
                        case 2:
                            event["end"] = max(0, round(event["start"] - self.step, 3))
                        case _:
                            event["start"] = max(0, round(self.now - self.step, 3))
                case _:
                    if r.randint(0, 1) and self.sessions:
                        event = {r.choice(("close_session", "cancel_session")): r.choice(("s0", *self.sessions))}
                        event |= {"user": r.choice(self.users)}
                    else:
                        event = {"cancel": r.choice(("j0", "calibration-q1-1", "calibration-q1-2", *self.jobs))}
                        event |= {"user": r.choice(self.users)} if self.chance(0.5) else {}
                    return event
        return event


def make_scenario(seed: int, beyond_files: bool = False) -> dict[str, Any]:
    """The scenario of this seed: always the same. `beyond_files`: also with what the server can be asked, but no
    scenario file can say: other priorities and shares, deleted reservations, restarts."""
    return Maker(seed, beyond_files).make()


class _Flow(yaml.CSafeDumper):
    """Writes what is inside a line as `{a: 1, b: [2]}`."""


def _inline(value: Any) -> str:
    text: str = yaml.dump(value, Dumper=_Flow, default_flow_style=True, sort_keys=False, width=10_000)
    return text.removesuffix("\n").removesuffix("\n...")


def to_yaml(scenario: Mapping[str, Any]) -> str:
    """The scenario as a file: one line an event."""
    lines: list[str] = []
    for key, value in scenario.items():
        if key == "events":
            lines.append("events:" if value else "events: []")
            lines += [f"  - {_inline(event)}" for event in value]
        elif key == "devices":
            lines.append("devices:")
            lines += [f"  {name}: {_inline(settings)}" for name, settings in value.items()]
        else:
            lines.append(f"{key}: {_inline(value)}")
    return "\n".join(lines) + "\n"
