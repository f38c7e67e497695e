"""Lessons: labs that begin broken, ask for a prediction, and prove by captured packets what became of it.

A lesson is a folder `labs/NN-name/` with the question (README.md), the lab (lab.yaml) and this (lesson.py):

    from overlaynet.lessons import Board, Lesson, Prediction, Stage
    from overlaynet.proof import icmp

    def start(stage: Stage) -> None:
        stage.run("node-1", "ip", "route", "del", "10.244.2.0/24")

    def check(stage: Stage, board: Board) -> None:
        with stage.net.capture(["web-1", "web-3"]) as packets:
            stage.net.send("web-1", "web-3")
        with board.claim("web-3 receives what web-1 sends"):
            came = packets.at("web-3:eth0").expect(icmp("echo-request"))[0]
        board.measured("ttl", theory=62, captured=came.innermost.ttl, because="two hosts route it")

    LESSON = Lesson(question=…, predictions=(Prediction("ttl", "…"),), hints=(…), start=start, check=check, …)

How to write one is told in docs/lessons.md. What is needed for that is named here; `catalogue` finds lessons,
`classroom` runs them, `record` keeps what a learner did.
"""

from __future__ import annotations

from overlaynet.lessons.board import Board
from overlaynet.lessons.lesson import Lesson, Prediction
from overlaynet.lessons.stage import Stage, last_seen

__all__ = ["Board", "Lesson", "Prediction", "Stage", "last_seen"]
