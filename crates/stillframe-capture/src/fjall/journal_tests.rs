//! What the journal reader makes of journals of the engine, of torn and damaged ones, and of hostile bytes.

use proptest::prelude::*;
use xxhash_rust::xxh3::xxh3_64;

use super::*;

/// One item as the engine writes it, without compression.
fn item(keyspace: u64, key: &[u8], value: &[u8]) -> Vec<u8> {
    let mut bytes = vec![ITEM, 0, 0];
    bytes.extend(keyspace.to_le_bytes());
    bytes.extend(u16::try_from(key.len()).unwrap().to_le_bytes());
    bytes.extend(u32::try_from(value.len()).unwrap().to_le_bytes());
    bytes.extend(u32::try_from(value.len()).unwrap().to_le_bytes());
    bytes.extend(key);
    bytes.extend(value);
    bytes
}

fn batch(seqno: u64, items: &[Vec<u8>]) -> Vec<u8> {
    let body = items.concat();
    let mut bytes = vec![START];
    bytes.extend(u32::try_from(items.len()).unwrap().to_le_bytes());
    bytes.extend(seqno.to_le_bytes());
    bytes.extend(&body);
    bytes.push(END);
    bytes.extend(xxh3_64(&body).to_le_bytes());
    bytes.extend(TRAILER);
    bytes
}

fn scan_all(bytes: &[u8]) -> (Result<Tail, ScanError>, Sound) {
    let mut sound = Sound::default();
    let tail = scan(bytes, &mut sound);
    (tail, sound)
}

fn behind(bytes: &[u8], sound: &Sound) -> Result<Option<u64>, ScanError> {
    let open = |at: u64| Ok(&bytes[usize::try_from(at).unwrap().min(bytes.len())..]);
    whole_batch_behind(sound, bytes.len() as u64, open)
}

#[test]
fn a_journal_of_the_engine_is_read_to_its_end_with_every_kind_of_record() {
    let dir = tempfile::tempdir().unwrap();
    let db = fjall::Database::builder(dir.path()).open().unwrap();
    let keyspace = db.keyspace("a", fjall::KeyspaceCreateOptions::default).unwrap();
    for n in 0..100_u32 {
        let mut batch = db.batch();
        batch.insert(&keyspace, n.to_be_bytes(), b"value");
        batch.insert(&keyspace, b"large and compressed", vec![7; 9000]);
        batch.remove(&keyspace, b"gone");
        batch.remove_weak(&keyspace, b"weak");
        batch.commit().unwrap();
    }
    keyspace.clear().unwrap();
    drop((keyspace, db));

    let bytes = std::fs::read(dir.path().join("0.jnl")).unwrap();
    let (tail, sound) = scan_all(&bytes);
    assert_eq!(tail.unwrap(), Tail::Clean, "zeros of the preallocated rest are the end");
    assert_eq!((sound.batches, sound.items), (101, 401));
    let end = bytes.iter().rposition(|&byte| byte != 0).unwrap() as u64 + 1;
    assert_eq!(sound.end, end, "the last byte that is not zero ends the last batch");
}

#[test]
fn reading_goes_on_where_an_earlier_one_stopped() {
    let one = batch(1, &[item(1, b"k", b"v")]);
    let both = [one.clone(), batch(2, &[item(1, b"k", b"w"), item(2, b"l", b"x")])].concat();
    let (tail, mut sound) = scan_all(&both[..one.len() + 5]);
    assert_eq!((tail.unwrap(), sound.end), (Tail::Torn, one.len() as u64));
    assert_eq!(scan(&both[one.len()..], &mut sound).unwrap(), Tail::Clean);
    assert_eq!((sound.end, sound.batches, sound.items, sound.last_seqno), (both.len() as u64, 2, 3, Some(2)));
}

#[test]
fn a_cut_at_any_byte_is_a_torn_tail_and_never_damage() {
    let one = batch(7, &[item(1, b"key", b"value")]);
    let both =
        [one.clone(), batch(8, &[item(1, b"key", &[9; 300]), vec![CLEAR, 1, 0, 0, 0, 0, 0, 0, 0]])].concat();
    for cut in 0..both.len() {
        let (tail, sound) = scan_all(&both[..cut]);
        let whole = if cut < one.len() { 0 } else { one.len() };
        assert_eq!(sound.end, whole as u64, "cut at {cut}");
        let expected = if cut == whole { Tail::Clean } else { Tail::Torn };
        assert_eq!(tail.unwrap(), expected, "cut at {cut}");
        assert_eq!(behind(&both[..cut], &sound).unwrap(), None);
    }
}

#[test]
fn a_whole_batch_with_a_changed_byte_is_damage() {
    let bytes = batch(7, &[item(1, b"key", b"value")]);
    for at in 13..bytes.len() - 4 {
        let mut damaged = bytes.clone();
        damaged[at] ^= 0x10;
        let (tail, sound) = scan_all(&damaged);
        assert_eq!(sound.end, 0);
        assert!(!matches!(tail, Ok(Tail::Clean)), "changed at {at}");
    }
    let mut value = bytes.clone();
    value[bytes.len() - 15] ^= 1;
    let error = scan_all(&value).0.unwrap_err();
    assert_eq!(error.to_string(), "the batch at offset 0 is damaged: its checksum is wrong");
}

#[test]
fn more_or_fewer_items_than_announced_are_damage() {
    for (announced, what) in [(2_u8, "fewer"), (0, "more")] {
        let mut bytes = batch(7, &[item(1, b"key", b"value")]);
        bytes[1] = announced;
        assert!(scan_all(&bytes).0.unwrap_err().to_string().contains(what));
    }
}

#[test]
fn a_whole_batch_behind_an_unreadable_place_is_found() {
    let one = batch(1, &[item(1, b"k", b"v")]);
    let two = batch(2, &[item(1, b"k", b"w")]);
    let three = batch(3, &[item(1, b"k", b"x")]);
    let mut damaged = [one.clone(), two.clone(), three].concat();
    damaged[one.len() + 13] = 9;
    let (tail, sound) = scan_all(&damaged);
    assert_eq!(tail.unwrap(), Tail::Torn);
    assert_eq!(behind(&damaged, &sound).unwrap(), Some((one.len() + two.len()) as u64));

    // A hole where a batch was: replay takes the first zero for the end.
    damaged[one.len()..one.len() + two.len()].fill(0);
    let (tail, sound) = scan_all(&damaged);
    assert_eq!(tail.unwrap(), Tail::Torn, "zeros with something behind them are not the end");
    assert!(behind(&damaged, &sound).unwrap().is_some());
}

#[test]
fn an_older_batch_stored_in_a_torn_value_is_not_taken_for_damage() {
    let old = batch(3, &[item(1, b"k", b"v")]);
    let one = batch(10, &[item(1, b"k", b"v")]);
    let mut torn = batch(11, &[item(1, b"journal", &[old.clone(), old].concat())]);
    torn.truncate(torn.len() - 6);
    let bytes = [one, torn].concat();
    let (tail, sound) = scan_all(&bytes);
    assert_eq!(tail.unwrap(), Tail::Torn);
    assert_eq!(behind(&bytes, &sound).unwrap(), None);
}

#[test]
fn a_value_of_four_gigabytes_that_is_not_there_needs_no_memory() {
    let mut bytes = batch(1, &[item(1, b"k", b"v")]);
    let stored_len = 13 + 1 + 2 + 8 + 2 + 4;
    bytes[stored_len..stored_len + 4].copy_from_slice(&u32::MAX.to_le_bytes());
    assert_eq!(scan_all(&bytes).0.unwrap(), Tail::Torn);
}

#[test]
fn bytes_made_of_beginnings_only_end_in_an_error_and_not_in_hours() {
    let mut bytes = batch(1, &[item(1, b"k", b"v")]);
    let mut start = vec![START];
    start.extend(1_u32.to_le_bytes());
    start.extend(2_u64.to_le_bytes());
    start.push(ITEM);
    bytes.push(9);
    for _ in 0..40_000 {
        bytes.extend(&start);
    }
    let (tail, sound) = scan_all(&bytes);
    assert_eq!(tail.unwrap(), Tail::Torn);
    assert!(matches!(behind(&bytes, &sound), Err(ScanError::Damaged(_))));
}

proptest! {
    #[test]
    fn hostile_bytes_never_panic(bytes in proptest::collection::vec(prop_oneof![0_u8..6, any::<u8>()], 0..600)) {
        let (_, sound) = scan_all(&bytes);
        prop_assert!(sound.end <= bytes.len() as u64);
        let _ = behind(&bytes, &sound);
    }

    #[test]
    fn any_sequence_of_batches_is_read_whole_and_any_cut_keeps_the_whole_ones(
        batches in proptest::collection::vec(
            proptest::collection::vec((any::<u64>(), proptest::collection::vec(any::<u8>(), 0..20), proptest::collection::vec(any::<u8>(), 0..200)), 1..5),
            0..8,
        ),
        cut in any::<prop::sample::Index>(),
        zeros in 0_usize..50,
    ) {
        let mut bytes = Vec::new();
        let mut ends = vec![0];
        for (n, items) in batches.iter().enumerate() {
            let items: Vec<_> = items.iter().map(|(id, key, value)| item(*id, key, value)).collect();
            bytes.extend(batch(n as u64 + 1, &items));
            ends.push(bytes.len());
        }
        let whole = bytes.len();
        bytes.resize(whole + zeros, 0);
        let (tail, sound) = scan_all(&bytes);
        prop_assert_eq!(tail.unwrap(), Tail::Clean);
        prop_assert_eq!(sound.end, whole as u64);

        let cut = cut.index(whole + 1);
        let (tail, sound) = scan_all(&bytes[..cut]);
        tail.unwrap();
        let expected = ends.iter().rev().find(|&&end| end <= cut).unwrap();
        prop_assert_eq!(sound.end, *expected as u64);
    }
}
