//! A RocksDB directory of set entropy, written by rocksdbjni.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::error::BenchError;
use crate::measurement::call;
use crate::tree::{directory_with, names_with_extension, need, same_bytes};
use crate::workshop::Workshop;

/// The release of rocksdbjni that writes; `bench/install.sh` brings the same.
pub(crate) const RELEASE: &str = "11.8.1";

/// Bytes of one value; keys have 8.
pub(crate) const VALUE: u64 = 1000;

/// What one row takes in a table, index and checksums included.
pub(crate) const ROW: u64 = 1022;

const INSTALL: &str = "run bench/install.sh";

/// What the database is to be like.
#[derive(Debug, Clone, Copy)]
pub(crate) struct RocksShape {
    /// Bytes of all tables together, roughly.
    pub(crate) bytes: u64,
    /// Bytes of one table, roughly.
    pub(crate) table: u64,
    /// The part of each value that cannot be compressed.
    pub(crate) noise: f64,
}

/// A database that is written only between the runs.
#[derive(Debug)]
pub(crate) struct RocksData {
    /// Its directory.
    pub(crate) dir: PathBuf,
    words: Vec<String>,
    java: Vec<String>,
}

/// The words after `java` that run one of the programs of the bench.
pub(crate) fn java(workshop: &Workshop, program: &str) -> Result<Vec<String>, BenchError> {
    let jar = workshop.cache().join(format!("jars/rocksdbjni-{RELEASE}.jar"));
    let native = workshop.cache().join(format!("native/{RELEASE}"));
    need(&jar, INSTALL)?;
    need(&native.join("librocksdbjni.so"), INSTALL)?;
    let program = workshop.bench().join("java").join(program);
    Ok(vec![
        "-Xmx512m".to_owned(),
        format!("-Djava.library.path={}", native.display()),
        "-cp".to_owned(),
        jar.display().to_string(),
        program.display().to_string(),
    ])
}

impl RocksData {
    /// Writes the database, compacts it and closes it.
    pub(crate) fn fill(workshop: &Workshop, name: &str, shape: RocksShape) -> Result<Self, BenchError> {
        let dir = workshop.empty_dir(name)?;
        let java = java(workshop, "BenchData.java")?;
        let words = vec![
            format!("rows={}", (shape.bytes / ROW).max(1000)),
            format!("value={VALUE}"),
            format!("noise={}", shape.noise),
            format!("seed={}", workshop.seed),
            format!("table={}", shape.table),
        ];
        let data = Self { dir, words, java };
        data.run("fill", &[])?;
        Ok(data)
    }

    /// Writes one row in `one_in`, all over the keys, anew; `round` makes the values others than before.
    pub(crate) fn change(&self, one_in: u64, round: u32) -> Result<(), BenchError> {
        self.run("change", &[format!("one_in={one_in}"), format!("round={round}")])
    }

    /// How many tables it has.
    pub(crate) fn tables(&self) -> Result<usize, BenchError> {
        Ok(names_with_extension(&self.dir, "sst")?.len())
    }

    /// Whether every table lies somewhere below `restored`, byte by byte, and the first difference if not.
    pub(crate) fn difference(&self, restored: &Path) -> Result<Option<String>, BenchError> {
        let Some(dir) = directory_with(restored, "CURRENT")? else {
            return Ok(Some("there is no CURRENT".to_owned()));
        };
        let tables = names_with_extension(&self.dir, "sst")?;
        if names_with_extension(&dir, "sst")? != tables {
            return Ok(Some("the tables have other names".to_owned()));
        }
        for name in tables {
            if !same_bytes(&self.dir.join(&name), &dir.join(&name))? {
                return Ok(Some(format!("{} has other bytes", name.display())));
            }
        }
        Ok(None)
    }

    fn run(&self, verb: &str, more: &[String]) -> Result<(), BenchError> {
        let mut java = Command::new("java");
        java.args(&self.java).arg(verb).arg(&self.dir).args(&self.words).args(more);
        call(&mut java).map(drop)
    }
}
