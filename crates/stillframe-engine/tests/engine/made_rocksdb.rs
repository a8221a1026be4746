//! RocksDB databases that no RocksDB wrote: a MANIFEST that names tables, the tables, a log and options. The unique ids in the MANIFEST
//! are all that proves a table to be unchanged, so a test decides what is claimed, and what is true.

use std::path::Path;

/// A table: its number, which its unique id follows, and its bytes.
pub type Table<'a> = (u8, &'a [u8]);

/// Writes the database anew at `dir`, which may hold an earlier one of these. Its log goes to `logs`.
pub fn make_rocksdb(dir: &Path, logs: &Path, tables: &[Table<'_>]) {
    std::fs::create_dir_all(dir).unwrap();
    std::fs::create_dir_all(logs).unwrap();
    let mut manifest = Vec::new();
    let mut head = Vec::new();
    string(&mut head, 1, b"leveldb.BytewiseComparator");
    for (tag, value) in [(2, 200), (3, 210), (4, 1000)] {
        number(&mut head, tag);
        number(&mut head, value);
    }
    record(&mut manifest, &head);
    for (id, bytes) in tables {
        let bytes = &whole_table(bytes);
        let mut edit = Vec::new();
        for value in [103, 0, u64::from(*id), bytes.len() as u64] {
            number(&mut edit, value);
        }
        for key in [b"a", b"z"] {
            let key = [key.as_slice(), b"\x01\0\0\0\0\0\0\0"].concat();
            number(&mut edit, key.len() as u64);
            edit.extend(key);
        }
        number(&mut edit, 1);
        number(&mut edit, 2);
        string(&mut edit, 12, &[*id; 16]);
        number(&mut edit, 1);
        record(&mut manifest, &edit);
        std::fs::write(dir.join(format!("{id:06}.sst")), bytes).unwrap();
    }
    std::fs::write(dir.join("MANIFEST-000005"), manifest).unwrap();
    std::fs::write(dir.join("CURRENT"), "MANIFEST-000005\n").unwrap();
    std::fs::write(dir.join("IDENTITY"), "made-up").unwrap();
    std::fs::write(dir.join("LOCK"), "").unwrap();
    // What the engine notes when it opens a database.
    let diary = format!("x 1 SST files in {} dir, Total Num: 0, files: \n", dir.display());
    std::fs::write(dir.join("LOG"), diary).unwrap();
    let wal_dir = if logs == dir { String::new() } else { format!("  wal_dir={}\n", logs.display()) };
    let options = format!("[Version]\n  rocksdb_version=9.9.9\n[DBOptions]\n{wal_dir}  max_open_files=-1\n");
    std::fs::write(dir.join("OPTIONS-000007"), options).unwrap();
    let mut log = Vec::new();
    record(&mut log, &[7; 3000]);
    std::fs::write(logs.join("000200.log"), log).unwrap();
}

/// With the magic number of plain tables, which are not looked into, at the end.
fn whole_table(bytes: &[u8]) -> Vec<u8> {
    [bytes, &0x8242_2296_63bf_9564_u64.to_le_bytes()].concat()
}

/// One record that fits into a block with all others.
fn record(file: &mut Vec<u8>, payload: &[u8]) {
    assert!(file.len() + payload.len() < 32_000, "only one block is written");
    let summed = [&[1], payload].concat();
    let crc = !summed.iter().fold(u32::MAX, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| (crc >> 1) ^ if crc & 1 == 1 { 0x82f6_3b78 } else { 0 })
    });
    file.extend(crc.rotate_right(15).wrapping_add(0xa282_ead8).to_le_bytes());
    file.extend(u16::try_from(payload.len()).unwrap().to_le_bytes());
    file.extend(summed);
}

fn number(bytes: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        bytes.push(value.to_le_bytes()[0] | 0x80);
        value >>= 7;
    }
    bytes.push(value.to_le_bytes()[0]);
}

fn string(bytes: &mut Vec<u8>, tag: u64, text: &[u8]) {
    number(bytes, tag);
    number(bytes, text.len() as u64);
    bytes.extend(text);
}
