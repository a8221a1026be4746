//! The command line.

use std::path::PathBuf;

use clap::{Parser, ValueEnum};

use crate::part::Part;
use crate::tool_name::ToolName;

/// Compares Stillframe with other tools and prints one table. Run bench/install.sh first, and build the program
/// (cargo build --release).
#[derive(Debug, Parser)]
#[command(name = "stillframe-bench")]
pub(crate) struct Arguments {
    /// Size of the data, as a part of the full size (1 GiB and so on)
    #[arg(long, default_value_t = 1.0, value_parser = parse_scale)]
    pub(crate) scale: f64,
    /// How often each run is repeated; the table shows medians [default: 3, of the foreground 9]
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=99))]
    pub(crate) rounds: Option<u32>,
    /// Only this part; may be repeated
    #[arg(long, value_enum)]
    pub(crate) only: Vec<Part>,
    /// Only these tools; may be repeated
    #[arg(long, value_enum)]
    pub(crate) tool: Vec<ToolName>,
    /// Where the data and repositories go; 20 GB must be free at full size, 40 GB with --full [default: target/bench]
    #[arg(long, value_name = "DIR")]
    pub(crate) work: Option<PathBuf>,
    /// Also what takes long: memory at 8 GiB, and beside an index of 10 000 000 chunks
    #[arg(long)]
    pub(crate) full: bool,
    /// How many images the capture part takes of each writer
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub(crate) captures: u32,
    /// The seed of the data
    #[arg(long, default_value_t = 1)]
    pub(crate) seed: u64,
    /// The program that is measured [default: target/release/stillframe]
    #[arg(long, value_name = "PATH")]
    pub(crate) stillframe: Option<PathBuf>,
    /// Where the table goes, as Markdown; what stands there from the line `## Remarks` on is kept
    /// [default: target/bench/RESULTS.md]
    #[arg(long, value_name = "FILE")]
    pub(crate) results: Option<PathBuf>,
}

impl Arguments {
    /// What is to be run, in the order of the table.
    pub(crate) fn parts(&self) -> impl Iterator<Item = Part> {
        Part::value_variants().iter().copied().filter(|part| self.only.is_empty() || self.only.contains(part))
    }

    /// What is compared, in the order of the table.
    pub(crate) fn tools(&self) -> Vec<ToolName> {
        let wanted = |name: &ToolName| self.tool.is_empty() || self.tool.contains(name);
        ToolName::value_variants().iter().copied().filter(wanted).collect()
    }
}

fn parse_scale(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(scale) if (0.001..=10.0).contains(&scale) => Ok(scale),
        _ => Err("a number from 0.001 to 10".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_come_in_the_order_of_the_table_whatever_order_was_asked_for() {
        let all = Arguments::parse_from(["bench"]);
        assert_eq!(all.parts().collect::<Vec<_>>(), Part::value_variants());
        let two = Arguments::parse_from(["bench", "--only", "sqlite", "--only", "capture"]);
        assert_eq!(two.parts().collect::<Vec<_>>(), [Part::Capture, Part::Sqlite]);
    }

    #[test]
    fn a_scale_out_of_range_is_refused() {
        for wrong in ["0", "-1", "NaN", "11", "half"] {
            assert!(parse_scale(wrong).is_err(), "{wrong}");
        }
    }
}
