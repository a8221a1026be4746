//! Stillframe beside other tools on data of set entropy: wall time, processor time, peak memory and bytes, in one table with the bars
//! that it is held to.
//!
//! It runs programs as their users do, as children, and measures each whole process tree ([`measurement`]). The rules, the same for
//! every tool: the page cache is warm, a run ends only when `sync` has returned, the tools take turns and the order turns
//! with every round, and what was restored is compared with the data before a time counts. It makes no promise about a machine on which
//! something else is running: the table shows how busy others kept it.
//!
//! `bench/install.sh` brings what it needs.
#![forbid(unsafe_code)]

mod arguments;
mod bars;
mod captures;
mod comparison;
mod data;
mod disk_rate;
mod error;
mod fjall_data;
mod foreground;
mod machine;
mod measurement;
mod memory;
mod open_loop;
mod part;
mod report;
mod results;
mod rocks_data;
mod source;
mod sqlite_data;
mod statistics;
mod tool_name;
mod tools;
mod tree;
mod workshop;

use std::process::ExitCode;

use clap::Parser;

use crate::arguments::Arguments;
use crate::error::BenchError;
use crate::machine::Machine;
use crate::part::Part;
use crate::results::Results;
use crate::workshop::{Workshop, say};

fn main() -> ExitCode {
    let mut words = std::env::args_os().skip(1);
    match words.next() {
        Some(first) if first == measurement::MEASURED => return measurement::run_measured(words),
        Some(first) if first == machine::TOUCH => return machine::run_touch(),
        _ => {}
    }
    match run(&Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> Result<(), BenchError> {
    let workshop = Workshop::open(arguments)?;
    machine::touch_memory()?;
    let mut machine = Machine::look(&workshop)?;
    let mut results = Results::default();
    for part in arguments.parts() {
        say(&format!("== {}", part.title()));
        machine.note_load(part)?;
        match part {
            Part::Capture => results.captures = captures::run(&workshop)?,
            Part::Foreground => results.foreground = Some(foreground::run(&workshop)?),
            Part::Memory => results.rows.extend(memory::run(&workshop)?),
            Part::Index if !workshop.full => say("   only with --full"),
            Part::Index => results.rows.extend(memory::beside_large_index(&workshop)?),
            _ => {
                let (rows, facts) = comparison::run(&workshop, part)?;
                results.rows.extend(rows);
                results.facts.push(facts);
            }
        }
    }
    machine.note_end()?;
    let text = report::markdown(&workshop, &machine, &results);
    println!("{text}");
    report::write(&workshop, &text)
}
