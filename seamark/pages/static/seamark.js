// Asks for the live parts of a page again and again: HTML as the server renders it, put in the place of the old.
(function () {
    "use strict";

    var dot = document.getElementById("sm-live-dot");
    var text = document.getElementById("sm-live-text");

    function tell(kind, words) {
        dot.classList.toggle("status-dot-live", kind === "live");
        dot.classList.toggle("status-dot-error", kind === "error");
        text.textContent = words;
    }

    function isMarked(part) {
        var selection = window.getSelection();
        return !selection.isCollapsed && part.contains(selection.anchorNode);
    }

    function keep(part) {
        var pause = Number(part.dataset.every) * 1000;
        var last = "";

        function again() {
            window.setTimeout(look, pause);
        }

        function look() {
            if (document.hidden) {
                again();
                return;
            }
            fetch(part.dataset.live, {cache: "no-store", credentials: "same-origin"}).then(function (answer) {
                if (!answer.ok) {
                    throw new Error(String(answer.status));
                }
                return answer.text();
            }).then(function (html) {
                if (isMarked(part)) {
                    tell("paused", "Held while text is marked");
                    return;
                }
                if (html !== last) {
                    part.innerHTML = html;
                    last = html;
                }
                tell("live", "Live, " + new Date().toLocaleTimeString());
            }).catch(function () {
                tell("error", "No answer: what is shown is old");
            }).finally(again);
        }

        again();
    }

    document.querySelectorAll("[data-live]").forEach(keep);
}());
