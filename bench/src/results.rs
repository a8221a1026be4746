//! What a run found.

use crate::captures::Captures;
use crate::foreground::Foreground;
use crate::measurement::Measurement;
use crate::part::Part;
use crate::statistics::median;
use crate::tool_name::ToolName;

/// One kind of work that tools are asked to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Work {
    /// The first backup into an empty repository.
    Full,
    /// A backup when nothing has changed since the last one.
    Unchanged,
    /// A backup when one percent of the rows has been written anew.
    Changed,
    /// Bringing the last backup back.
    Restore,
    /// Opening the repository and listing what is in it: what every other work contains.
    Unlock,
}

impl Work {
    /// In the order in which they are done.
    pub(crate) const ALL: [Self; 5] =
        [Self::Full, Self::Unlock, Self::Unchanged, Self::Changed, Self::Restore];

    /// What the table calls it.
    pub(crate) fn title(self) -> &'static str {
        match self {
            Self::Full => "full",
            Self::Unchanged => "nothing changed",
            Self::Changed => "1 % changed",
            Self::Restore => "restore",
            Self::Unlock => "unlock and list",
        }
    }
}

/// All runs of one tool doing one work on the data of one part.
#[derive(Debug)]
pub(crate) struct Row {
    /// Which data.
    pub(crate) part: Part,
    /// More about the data, where one part has several.
    pub(crate) size: Option<u64>,
    /// Which work.
    pub(crate) work: Work,
    /// Which tool.
    pub(crate) tool: ToolName,
    /// One a round.
    pub(crate) runs: Vec<Measurement>,
}

impl Row {
    /// Median seconds from start to end.
    pub(crate) fn wall(&self) -> f64 {
        median(self.runs.iter().map(|run| run.wall))
    }

    /// Median processor seconds.
    pub(crate) fn cpu(&self) -> f64 {
        median(self.runs.iter().map(|run| run.cpu))
    }

    /// The largest of the peaks, in bytes.
    pub(crate) fn peak_rss(&self) -> u64 {
        self.runs.iter().map(|run| run.peak_rss).max().unwrap_or(0)
    }

    /// The median of the peaks, in bytes: to compare two rows by.
    #[expect(clippy::cast_precision_loss, reason = "a size that is printed")]
    pub(crate) fn usual_peak(&self) -> f64 {
        median(self.runs.iter().map(|run| run.peak_rss as f64))
    }

    /// Median bytes written to the repository.
    #[expect(clippy::cast_precision_loss, reason = "a size that is printed")]
    pub(crate) fn written(&self) -> f64 {
        median(self.runs.iter().map(|run| run.written as f64))
    }

    /// The busiest that others kept the machine, as a part of it.
    pub(crate) fn others(&self) -> f64 {
        self.runs.iter().map(|run| run.others).fold(0.0, f64::max)
    }
}

/// What the data of a part were.
#[derive(Debug)]
pub(crate) struct Facts {
    /// Which part.
    pub(crate) part: Part,
    /// Bytes at the beginning.
    pub(crate) bytes: u64,
    /// Tables at the end, of a RocksDB.
    pub(crate) tables: usize,
    /// Median bytes that a change touched.
    pub(crate) changed: f64,
}

/// Everything that a run found.
#[derive(Debug, Default)]
pub(crate) struct Results {
    /// The table.
    pub(crate) rows: Vec<Row>,
    /// Of each part that compares tools.
    pub(crate) facts: Vec<Facts>,
    /// Of each busy writer.
    pub(crate) captures: Vec<Captures>,
    /// Of the writer that was not alone.
    pub(crate) foreground: Option<Foreground>,
}

impl Results {
    /// One row of a part that compares tools.
    pub(crate) fn row(&self, part: Part, work: Work, tool: ToolName) -> Option<&Row> {
        self.rows.iter().find(|row| row.part == part && row.work == work && row.tool == tool)
    }

    /// What the data of that part were.
    pub(crate) fn facts(&self, part: Part) -> Option<&Facts> {
        self.facts.iter().find(|facts| facts.part == part)
    }
}
