//! What the user sees: a bar on a terminal, plain lines otherwise, JSON lines on request.

use std::borrow::Cow;
use std::io::{IsTerminal, Write};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde_json::{Value, json};
use stillframe_engine::Event;
use stillframe_jobs::Reading;
use stillframe_storage::Clock;

use crate::failure::{Failure, Kind};
use crate::sizes::{bytes, count, span};

/// How much is said, and in what form.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    Terminal,
    Plain,
    Json,
    Quiet,
}

/// How often plain output and JSON tell of progress.
const PROGRESS_EVERY: Duration = Duration::from_secs(5);

/// Standard output for results, standard error for everything on the way.
pub struct Console {
    mode: Mode,
    /// With JSON: results and warnings only, no progress.
    quiet: bool,
    bar: Mutex<Option<ProgressBar>>,
    told: Mutex<Option<Duration>>,
    /// Why standard output took no more of the result.
    unsaid: Mutex<Option<std::io::Error>>,
    /// The last result of each type, in the order in which the types came.
    last: Mutex<Vec<Value>>,
    /// The last words were said.
    failed: AtomicBool,
    clock: Box<dyn Clock>,
}

impl Console {
    /// As the options and the terminal say.
    pub fn new(json: bool, quiet: bool, clock: Box<dyn Clock>) -> Self {
        let mode = if json {
            Mode::Json
        } else if quiet {
            Mode::Quiet
        } else if std::io::stderr().is_terminal() && !ProgressDrawTarget::stderr().is_hidden() {
            Mode::Terminal
        } else {
            Mode::Plain
        };
        let (bar, told, unsaid) = (Mutex::new(None), Mutex::new(None), Mutex::new(None));
        let (last, failed) = (Mutex::new(Vec::new()), AtomicBool::new(false));
        Self { mode, quiet, bar, told, unsaid, last, failed, clock }
    }

    /// Whether results are JSON.
    pub fn is_json(&self) -> bool {
        self.mode == Mode::Json
    }

    /// A line of a result, for people.
    pub fn line(&self, text: impl AsRef<str>) {
        if !self.is_json() && self.mode != Mode::Quiet {
            self.clear_bar();
            self.print(text.as_ref());
        }
    }

    /// A line that is the result itself and is printed also when nothing else is (a list that was asked for).
    pub fn answer(&self, text: impl AsRef<str>) {
        if !self.is_json() {
            self.clear_bar();
            self.print(text.as_ref());
        }
    }

    /// A result for machines: one object on one line, with its `type`.
    pub fn object(&self, kind: &str, value: Value) {
        let mut object = json!({ "type": kind });
        if let (Some(object), Value::Object(fields)) = (object.as_object_mut(), value) {
            object.extend(fields);
        }
        if self.is_json() {
            self.print_raw(&json_line(&object));
        }
        if !["warning", "progress", "error"].contains(&kind) {
            let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
            match last.iter_mut().find(|known| known["type"] == kind) {
                Some(known) => *known = object,
                None => last.push(object),
            }
        }
    }

    /// The last result of each type for machines, whether it was printed or not.
    pub fn last_objects(&self) -> Vec<Value> {
        self.last.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Something on the way, for people.
    pub fn note(&self, text: impl AsRef<str>) {
        if matches!(self.mode, Mode::Terminal | Mode::Plain) {
            self.above_bar(text.as_ref());
        }
    }

    /// A warning: shown unless JSON is, where it is an object.
    pub fn warn(&self, text: impl AsRef<str>) {
        match self.mode {
            Mode::Json => self.object("warning", json!({ "message": text.as_ref() })),
            _ => self.above_bar(&format!("warning: {}", text.as_ref())),
        }
    }

    /// The last words of a command that failed.
    pub fn failure(&self, failure: &Failure) {
        if self.failed.swap(true, Ordering::Relaxed) {
            // A signal and the command that it ended may both come to an end here.
            return;
        }
        self.clear_bar();
        if self.is_json() {
            self.object("error", json!({ "kind": failure.kind.word(), "message": failure.message }));
        }
        say(&format!("stillframe: {}", failure.message));
    }

    /// A text as it is, for another program.
    pub fn script(&self, text: &[u8]) {
        let mut out = std::io::stdout().lock();
        self.note_unsaid(out.write_all(text).and_then(|()| out.flush()));
    }

    fn print(&self, line: &str) {
        self.print_raw(&printable(line));
    }

    fn print_raw(&self, line: &str) {
        let mut out = std::io::stdout().lock();
        self.note_unsaid(writeln!(out, "{line}").and_then(|()| out.flush()));
    }

    /// A reader that went away (`| head`) wants no more, and the work itself goes on; what is lost in another way was wanted.
    fn note_unsaid(&self, written: std::io::Result<()>) {
        if let Err(error) = written
            && error.kind() != std::io::ErrorKind::BrokenPipe
        {
            lock(&self.unsaid).get_or_insert(error);
        }
    }

    /// Fails when something of the result could not be printed.
    pub fn finish(&self) -> Result<(), Failure> {
        self.clear_bar();
        match lock(&self.unsaid).take() {
            None => Ok(()),
            Some(error) => Err(Failure::new(
                Kind::Failed,
                format!("the work is done, but its result could not be written to standard output: {error}"),
            )),
        }
    }

    /// One event of a verb.
    pub fn event(&self, event: &Event) {
        match event {
            Event::Capturing { source } => self.note(format!("capturing {source}")),
            Event::Moved { attempt, what } if attempt % 50 == 0 => {
                self.note(format!("still looking for a still moment: attempt {attempt}, {what} moved"));
            }
            Event::Captured { source, files, bytes: size, window, attempts } => {
                let tries = count((*attempts).into(), "attempt");
                self.note(format!(
                    "captured {source}: {}, {} in a window of {} ({tries})",
                    count(*files, "file"),
                    bytes(*size),
                    span(*window)
                ));
                self.object(
                    "captured",
                    json!({ "source": source, "files": files, "bytes": size, "attempts": attempts,
                        "window_us": u64::try_from(window.as_micros()).unwrap_or(u64::MAX) }),
                );
            }
            Event::Progress(reading) => self.progress(reading),
            Event::Warning(text) => self.warn(text),
            Event::Again { why } => self.note(format!("writing again: {why}")),
            Event::Moved { .. } | Event::Staging(_) => {}
        }
    }

    fn progress(&self, reading: &Reading) {
        if self.quiet {
            return;
        }
        if self.mode == Mode::Terminal {
            let mut bar = lock(&self.bar);
            let bar = bar.get_or_insert_with(new_bar);
            bar.set_position(u64::from(reading.percent()));
            bar.set_message(progress_text(reading));
            return;
        }
        let now = self.clock.monotonic();
        let mut told = lock(&self.told);
        if told.is_some_and(|before| now.saturating_sub(before) < PROGRESS_EVERY) {
            return;
        }
        let first = told.replace(now).is_none();
        drop(told);
        if self.is_json() {
            self.object("progress", progress_object(reading));
        } else if !first {
            self.note(progress_text(reading));
        }
    }

    /// Takes the bar away, before anything that is the end.
    pub fn clear_bar(&self) {
        if let Some(bar) = lock(&self.bar).take() {
            bar.finish_and_clear();
        }
    }

    fn above_bar(&self, text: &str) {
        match lock(&self.bar).as_ref() {
            Some(bar) => bar.suspend(|| say(text)),
            None => say(text),
        }
    }
}

/// A line on standard error. Work goes on when nobody takes it: a backup is worth more than what is said about it.
pub fn say(text: &str) {
    let _ = writeln!(std::io::stderr().lock(), "{}", printable(text));
}

/// JSON on one line. It may hold the control characters from U+007F on as they are, which a terminal obeys as well.
fn json_line(object: &Value) -> String {
    escape_controls(&object.to_string(), |c| format!("\\u{:04x}", u32::from(c))).into_owned()
}

/// One line, whatever a file's name is that stands in it: it could forge another line, or speak to the terminal.
fn printable(text: &str) -> Cow<'_, str> {
    escape_controls(text, |c| c.escape_default().to_string())
}

fn escape_controls(text: &str, escape: impl Fn(char) -> String) -> Cow<'_, str> {
    if !text.contains(commands_a_terminal) {
        return Cow::Borrowed(text);
    }
    Cow::Owned(text.chars().map(|c| if commands_a_terminal(c) { escape(c) } else { c.to_string() }).collect())
}

/// Control characters, and those that turn the direction of what follows: a name could show as another one.
fn commands_a_terminal(c: char) -> bool {
    c.is_control() || matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

fn new_bar() -> ProgressBar {
    let bar = ProgressBar::new(100);
    let style = ProgressStyle::with_template("{bar:30.cyan} {pos:>3}%  {msg}");
    bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
    bar
}

fn progress_text(reading: &Reading) -> String {
    let progress = &reading.progress;
    let mut text = format!("{}: {}", progress.phase, bytes(progress.bytes_done));
    if let Some(total) = progress.bytes_total {
        text = format!("{text} of {}", bytes(total));
    }
    if let Some(total) = progress.files_total {
        text = format!("{text}, {} of {}", progress.files_done, count(total, "file"));
    }
    if reading.bytes_per_second > 0 {
        text = format!("{text}, {}/s", bytes(reading.bytes_per_second));
    }
    if let Some(eta) = reading.eta.filter(|eta| eta.as_secs() > 0) {
        text = format!("{text}, {} left", span(eta));
    }
    text
}

fn progress_object(reading: &Reading) -> Value {
    let progress = &reading.progress;
    json!({
        "phase": progress.phase.to_string(), "percent": reading.percent(),
        "files_done": progress.files_done, "files_total": progress.files_total,
        "bytes_done": progress.bytes_done, "bytes_total": progress.bytes_total,
        "bytes_per_second": reading.bytes_per_second, "eta_seconds": reading.eta.map(|eta| eta.as_secs()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_cannot_end_a_line_nor_speak_to_the_terminal() {
        assert_eq!(
            printable("no\u{1b}[31mfile\nstillframe: all is well"),
            "no\\u{1b}[31mfile\\nstillframe: all is well"
        );
        assert_eq!(printable("grüße\\x0a"), "grüße\\x0a");
    }

    #[test]
    fn json_is_plain_text_that_reads_back() {
        let object = json!({ "message": "a\u{7f}b\u{85}c\u{1b}[31m\nd" });
        let line = json_line(&object);
        assert!(!line.contains(char::is_control), "{line:?}");
        assert_eq!(serde_json::from_str::<Value>(&line).unwrap(), object);
    }
}
