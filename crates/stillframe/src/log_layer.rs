//! Warnings that no verb returns, told like all others.
//!
//! The libraries log them with `tracing`. They reach the user as the console's warnings, each said once, and machines as objects of
//! the type `warning`. Whoever wants to see more sets `STILLFRAME_LOG`: then the log itself goes to standard error as well.

use std::collections::HashSet;
use std::fmt::Write;
use std::sync::{Arc, Mutex, PoisonError};

use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::filter::{LevelFilter, filter_fn};
use tracing_subscriber::layer::{Context, Layer, SubscriberExt};
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Registry};

use crate::console::Console;

/// What the session says itself: that a history was damaged.
const SAID_ELSEWHERE: &str = "stillframe_jobs::history_file";

/// From now on warnings go to the console, and to standard error what `STILLFRAME_LOG` wants to see.
pub fn start(console: &Arc<Console>) {
    let warnings =
        LogLayer { console: Arc::clone(console), said: Mutex::default() }.with_filter(filter_fn(|meta| {
            *meta.level() == Level::ERROR || *meta.level() == Level::WARN && meta.target() != SAID_ELSEWHERE
        }));
    let wanted = std::env::var("STILLFRAME_LOG").ok().filter(|wanted| !wanted.is_empty());
    let filter = wanted.map(|wanted| filter_of(&wanted).map_err(|error| (wanted, error)));
    let filter = match filter.transpose() {
        Ok(filter) => filter,
        Err((wanted, error)) => {
            console.warn(format!("STILLFRAME_LOG={wanted}: {error}; nothing more is logged"));
            None
        }
    };
    let log = filter.map(|filter| {
        tracing_subscriber::fmt::layer()
            .without_time()
            .with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr()))
            .with_writer(std::io::stderr)
            // What cannot be logged would be told on standard error, which panics.
            .log_internal_errors(false)
            .with_filter(filter)
    });
    Registry::default().with(warnings).with(log).init();
}

/// A word alone that is no level would be taken for a part of the program, of which there is none of that name.
fn filter_of(wanted: &str) -> Result<EnvFilter, String> {
    let is_known = |word: &str| {
        word.contains(['=', '[']) || word.starts_with("stillframe") || word.parse::<LevelFilter>().is_ok()
    };
    match wanted.split(',').map(str::trim).find(|word| !word.is_empty() && !is_known(word)) {
        Some(word) => Err(format!("{word:?} is not a level (error, warn, info, debug, trace)")),
        None => EnvFilter::try_new(wanted).map_err(|error| error.to_string()),
    }
}

struct LogLayer {
    console: Arc<Console>,
    said: Mutex<HashSet<String>>,
}

impl<S: Subscriber> Layer<S> for LogLayer {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let mut sentence = Sentence::default();
        event.record(&mut sentence);
        let text = sentence.text();
        if self.said.lock().unwrap_or_else(PoisonError::into_inner).insert(text.clone()) {
            self.console.warn(text);
        }
    }
}

/// A message with its fields, as people read it: `path: message: error`.
#[derive(Debug, Default)]
struct Sentence {
    path: String,
    message: String,
    others: String,
}

impl Sentence {
    fn text(self) -> String {
        let Self { path, message, others } = self;
        let path = if path.is_empty() { path } else { path + ": " };
        path + &message + &others
    }
}

impl Visit for Sentence {
    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        let written = match field.name() {
            "message" => write!(self.message, "{value:?}"),
            "path" => write!(self.path, "{value:?}"),
            "error" | "why" | "reason" => write!(self.others, ": {value:?}"),
            name => write!(self.others, ", {name} {value:?}"),
        };
        written.expect("writing to a String cannot fail");
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.record_debug(field, &format_args!("{value}"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Takes the sentences instead of a console.
    struct Taken(Arc<Mutex<Vec<String>>>);

    impl<S: Subscriber> Layer<S> for Taken {
        fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
            let mut sentence = Sentence::default();
            event.record(&mut sentence);
            self.0.lock().unwrap().push(sentence.text());
        }
    }

    #[test]
    fn a_word_that_is_no_level_is_an_error() {
        for good in ["debug", "warn,stillframe_capture=debug", "stillframe", "off", "trace,object_store=info"]
        {
            assert!(filter_of(good).is_ok(), "{good}");
        }
        assert!(filter_of("debgu").unwrap_err().contains("debgu"));
        assert!(filter_of("warn,x=lod").is_err());
    }

    #[test]
    fn a_logged_warning_reads_like_a_sentence() {
        let taken = Arc::new(Mutex::default());
        tracing::subscriber::with_default(Registry::default().with(Taken(Arc::clone(&taken))), || {
            let error = std::io::Error::other("no room");
            tracing::warn!(path = %"/a/b".to_owned(), %error, "it cannot be written");
            tracing::warn!(why = "it is old", "passed over");
            tracing::warn!(job = 7, "alone");
        });
        let taken = taken.lock().unwrap();
        assert_eq!(*taken, ["/a/b: it cannot be written: no room", "passed over: it is old", "alone, job 7"]);
    }
}
