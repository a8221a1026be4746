//! Reads the golden repositories twice: with the library, which must go on reading them for ever, and with a reader written
//! here from `docs/format.md` alone, which shows that the page is complete. It shares no code with the library.

#![allow(clippy::unwrap_used, reason = "a test stops at what it did not expect")]

mod support;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use argon2::{Algorithm, Argon2, Params, Version};
use ring::{aead, hkdf};
use stillframe_repo::{Repository, Unlock, VerifyLevel, VerifyOptions};
use stillframe_storage::object_store::local::LocalFileSystem;

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/format-1").join(name)
}

fn numbers() -> Vec<u8> {
    (0..2500_u32).flat_map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn golden_repositories_of_the_first_format_are_read() {
    let passphrase = || Unlock::Passphrase("golden".into());
    for (name, unlock) in [("plain", Unlock::None), ("encrypted", passphrase()), ("lived", passphrase())] {
        let store = Arc::new(LocalFileSystem::new_with_prefix(golden(name)).unwrap());
        let cache = tempfile::tempdir().unwrap();
        let repository = Repository::open(store, &unlock, cache.path()).await.unwrap();
        let id = repository.resolve("golden").await.unwrap();
        let report = repository.verify(id, &VerifyOptions::new(VerifyLevel::Decrypt)).await.unwrap();
        assert!(report.is_sound(), "{report:?}");
        assert_eq!((report.files, report.bytes), (6, 16 + 10_000 + 12_000));
        let key = repository.keys().await.unwrap().remove(0).unwrap();
        assert_eq!((key.label.as_str(), key.encrypted), ("first", name != "plain"));
        let pinned = repository.pins().await.unwrap().remove(&id).flatten().map(|pin| pin.why);
        assert_eq!(pinned.as_deref(), (name == "lived").then_some("audit"));
        let seen = repository.verified(id).await.unwrap();
        assert_eq!(seen.is_some_and(|seen| seen.levels["decrypt"].sound), name == "lived");
        assert_eq!(repository.info().await.unwrap().epochs.len(), if name == "lived" { 2 } else { 1 });
    }
}

#[test]
fn the_page_alone_is_enough_to_read_a_repository() {
    for (name, passphrase) in [("plain", None), ("encrypted", Some("golden")), ("lived", Some("golden"))] {
        let reader = PageReader::open(&golden(name), passphrase);
        let backups = reader.backups();
        assert_eq!(backups.len(), 1);
        let source = &backups[0]["sources"][0];
        assert_eq!(backups[0]["name"], "golden");
        assert_eq!(reader.content(source["snapshot"].as_str().unwrap()), b"{}");
        let files = reader.files(source["files"].as_str().unwrap());
        let paths: Vec<&str> = files.iter().map(|(path, _)| path.as_str()).collect();
        assert_eq!(paths, [":CURRENT", ":empty", ":link", ":numbers", ":sub", "wal_dir:000003.log"]);
        assert_eq!(files[0].1, b"MANIFEST-000001\n");
        assert_eq!(files[1].1, b"");
        assert_eq!(files[2].1, b"-> ../elsewhere");
        assert_eq!(files[3].1, numbers());
        assert_eq!(files[5].1, b"log ".repeat(3000));
        reader.check_index();
        if name == "lived" {
            let [(id, pin)] = reader.notes("pins", 8, "pin").try_into().unwrap();
            assert_eq!((pin["why"].as_str(), pin["host"].as_str()), (Some("audit"), Some("here")));
            assert_eq!(backups[0]["id"], id);
            let [(id, seen)] = reader.notes("verified", 9, "verified").try_into().unwrap();
            assert_eq!((&seen["levels"]["decrypt"]["whole"], &backups[0]["id"]), (&true.into(), &id.into()));
        }
    }
}

/// Little-endian numbers and runs of bytes, taken from the front.
struct Take<'a>(&'a [u8]);

impl<'a> Take<'a> {
    fn bytes(&mut self, len: usize) -> &'a [u8] {
        let (head, tail) = self.0.split_at(len);
        self.0 = tail;
        head
    }

    fn number(&mut self, len: usize) -> u64 {
        self.bytes(len).iter().rev().fold(0, |number, byte| number << 8 | u64::from(*byte))
    }

    fn len(&mut self, len: usize) -> usize {
        usize::try_from(self.number(len)).unwrap()
    }
}

fn derive(input: &[u8], salt: &[u8], info: &[u8]) -> [u8; 32] {
    let mut key = [0; 32];
    let prk = hkdf::Salt::new(hkdf::HKDF_SHA256, salt).extract(input);
    prk.expand(&[info], hkdf::HKDF_SHA256).unwrap().fill(&mut key).unwrap();
    key
}

fn open_sealed(key: &[u8; 32], header: &[u8], position: u64, sealed: &[u8]) -> Vec<u8> {
    let mut nonce = [0; 12];
    nonce[..8].copy_from_slice(&position.to_le_bytes());
    let associated = [header, &position.to_le_bytes()].concat();
    let key = aead::LessSafeKey::new(aead::UnboundKey::new(&aead::AES_256_GCM, key).unwrap());
    let mut bytes = sealed.to_vec();
    let nonce = aead::Nonce::assume_unique_for_key(nonce);
    key.open_in_place(nonce, aead::Aad::from(associated), &mut bytes).unwrap().to_vec()
}

/// Where a chunk is: the pack's bytes are read whole.
struct Place {
    pack: PathBuf,
    position: u64,
    start: usize,
    stored: usize,
    plain: usize,
    compression: u64,
}

struct PageReader {
    root: PathBuf,
    repository: Vec<u8>,
    id_key: [u8; 32],
    epochs: HashMap<u64, [u8; 32]>,
    chunks: HashMap<Vec<u8>, Place>,
}

fn list(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() { found.extend(list(&path)) } else { found.push(path) }
    }
    found.sort();
    found
}

fn hex(bytes: &[u8]) -> String {
    bytes
        .iter()
        .flat_map(|byte| [byte >> 4, byte & 15])
        .map(|n| char::from(b"0123456789abcdef"[usize::from(n)]))
        .collect()
}

fn unhex(text: &str) -> Vec<u8> {
    (0..text.len() / 2).map(|n| u8::from_str_radix(&text[2 * n..2 * n + 2], 16).unwrap()).collect()
}

/// Header and body of an object, its frame checked.
fn unframe(path: &Path, kind: u8) -> (Vec<u8>, Vec<u8>) {
    let bytes = std::fs::read(path).unwrap();
    let (content, hash) = bytes.split_at(bytes.len() - 32);
    assert_eq!(blake3::hash(content).as_bytes(), hash);
    let (header, body) = content.split_at(80);
    assert_eq!(&header[..8], b"STILLFRM");
    assert_eq!((header[8], header[9], &header[10..12]), (kind, 1, &[0, 0][..]));
    assert_eq!(hex(&header[32..48]), path.file_name().unwrap().to_str().unwrap());
    (header.to_vec(), body.to_vec())
}

impl PageReader {
    fn open(root: &Path, passphrase: Option<&str>) -> Self {
        let json = std::fs::read(root.join("stillframe.json")).unwrap();
        let json: serde_json::Value = serde_json::from_slice(&json).unwrap();
        assert_eq!((json["stillframe"].as_str(), json["format"].as_u64()), (Some("repository"), Some(1)));
        let repository = unhex(json["id"].as_str().unwrap());
        let (header, body) = unframe(&list(&root.join("keys"))[0], 1);
        assert_eq!(header[16..32], repository);
        let mut body = Take(&body);
        let wrapping = body.number(1);
        body.bytes(3);
        let (memory, passes, lanes) = (body.number(4), body.number(4), body.number(4));
        let len = body.len(4);
        let wrapped = body.bytes(len);
        let ring = match passphrase {
            None => {
                assert_eq!(wrapping, 0);
                wrapped.to_vec()
            }
            Some(passphrase) => {
                assert_eq!(wrapping, 1);
                let [memory, passes, lanes] = [memory, passes, lanes].map(|n| u32::try_from(n).unwrap());
                let params = Params::new(memory, passes, lanes, Some(32)).unwrap();
                let mut key = [0; 32];
                Argon2::new(Algorithm::Argon2id, Version::V0x13, params)
                    .hash_password_into(passphrase.as_bytes(), &header[48..80], &mut key)
                    .unwrap();
                open_sealed(&key, &header, 0, wrapped)
            }
        };
        let mut ring = Take(&ring);
        let master = ring.bytes(32);
        let mut epochs = HashMap::new();
        for _ in 0..ring.number(4) {
            let number = ring.bytes(4);
            let key = derive(ring.bytes(32), master, &[b"stillframe/1/epoch", number].concat());
            epochs.insert(Take(number).number(4), key);
        }
        assert!(ring.0.is_empty());
        let id_key = derive(master, &[], b"stillframe/1/chunk id");
        let mut reader = Self { root: root.to_owned(), repository, id_key, epochs, chunks: HashMap::new() };
        let len = body.len(4);
        let description = open_sealed(&reader.object_key(&header, "keys"), &header, 1, body.bytes(len));
        let description: serde_json::Value = serde_json::from_slice(&description).unwrap();
        assert_eq!(description["label"], "first");
        for pack in list(&root.join("packs")) {
            reader.read_pack(&pack);
        }
        reader
    }

    fn object_key(&self, header: &[u8], kind: &str) -> [u8; 32] {
        let epoch = &self.epochs[&Take(&header[12..16]).number(4)];
        derive(epoch, &header[48..80], format!("stillframe/1/{kind}").as_bytes())
    }

    fn read_pack(&mut self, path: &Path) {
        let (header, body) = unframe(path, 2);
        let name = hex(&header[32..48]);
        assert!(path.ends_with(format!("packs/{}/{name}", &name[..2])));
        let (rest, trailer) = body.split_at(body.len() - 8);
        let mut trailer = Take(trailer);
        let (footer_len, count) = (trailer.len(4), trailer.number(4));
        let (chunks, footer) = rest.split_at(rest.len() - footer_len);
        let footer = open_sealed(&self.object_key(&header, "pack"), &header, u64::MAX, footer);
        let mut footer = Take(&footer);
        let mut start = 80;
        for position in 0..count {
            let id = footer.bytes(32).to_vec();
            let (stored, plain, compression) = (footer.len(4), footer.len(4), footer.number(1));
            self.chunks
                .insert(id, Place { pack: path.to_owned(), position, start, stored, plain, compression });
            start += stored;
        }
        assert!(footer.0.is_empty());
        assert_eq!(start, 80 + chunks.len());
    }

    fn chunk(&self, id: &[u8]) -> Vec<u8> {
        let place = &self.chunks[id];
        let bytes = std::fs::read(&place.pack).unwrap();
        let (header, _) = unframe(&place.pack, 2);
        let key = self.object_key(&header, "pack");
        let stored = &bytes[place.start..place.start + place.stored];
        let opened = open_sealed(&key, &header, place.position, stored);
        let plain = match place.compression {
            0 => opened,
            _ => zstd::bulk::decompress(&opened, place.plain).unwrap(),
        };
        assert_eq!(plain.len(), place.plain);
        assert_eq!(blake3::keyed_hash(&self.id_key, &plain).as_bytes(), id);
        plain
    }

    fn tree(&self, level: u64, id: &[u8], length: u64) -> Vec<u8> {
        if length == 0 {
            assert!(level == 0 && id.iter().all(|byte| *byte == 0));
            return Vec::new();
        }
        let mut bytes = self.chunk(id);
        if level > 0 {
            let node = bytes;
            bytes = node
                .chunks(40)
                .flat_map(|c| self.tree(level - 1, &c[..32], Take(&c[32..]).number(8)))
                .collect();
        }
        assert_eq!(bytes.len() as u64, length);
        bytes
    }

    fn content(&self, text: &str) -> Vec<u8> {
        let parts: Vec<&str> = text.split(':').collect();
        self.tree(parts[0].parse().unwrap(), &unhex(parts[1]), parts[2].parse().unwrap())
    }

    fn backups(&self) -> Vec<serde_json::Value> {
        let manifests = list(&self.root.join("manifests")).into_iter().map(|path| {
            let id = path.file_name().unwrap().to_owned();
            let (header, body) = unframe(&path, 4);
            assert_eq!(header[16..32], self.repository);
            let sealed = open_sealed(&self.object_key(&header, "manifest"), &header, 0, &body);
            let json = zstd::bulk::decompress(&sealed, 16 << 20).unwrap();
            let (seal_header, seal) = unframe(&self.root.join("sealed").join(id), 5);
            let seal = open_sealed(&self.object_key(&seal_header, "sealed"), &seal_header, 0, &seal);
            assert!(std::fs::read(&path).unwrap().ends_with(&seal));
            serde_json::from_slice(&json).unwrap()
        });
        manifests.collect()
    }

    /// What was said of backups, by their ids.
    fn notes(&self, directory: &str, kind: u8, name: &str) -> Vec<(String, serde_json::Value)> {
        let read = |path: PathBuf| {
            let (header, body) = unframe(&path, kind);
            let json = open_sealed(&self.object_key(&header, name), &header, 0, &body);
            (hex(&header[32..48]), serde_json::from_slice(&json).unwrap())
        };
        list(&self.root.join(directory)).into_iter().map(read).collect()
    }

    /// `directory:path` and the bytes of a file, or `-> target`, of each entry.
    fn files(&self, list: &str) -> Vec<(String, Vec<u8>)> {
        let bytes = self.content(list);
        let mut rest = Take(&bytes);
        let mut files = Vec::new();
        while !rest.0.is_empty() {
            let len = rest.len(4);
            let mut entry = Take(rest.bytes(len));
            let kind = entry.number(1);
            let len = entry.len(1);
            assert_eq!(entry.bytes(len), b"table");
            let len = entry.len(1);
            let directory = String::from_utf8(entry.bytes(len).to_vec()).unwrap();
            let len = entry.len(2);
            let path = String::from_utf8(entry.bytes(len).to_vec()).unwrap();
            let size = entry.number(8);
            assert_eq!((entry.number(4), entry.number(4), entry.number(4)), (0o640, 1, 2));
            assert_eq!((entry.number(8).cast_signed(), entry.number(4)), (-7, 9));
            let len = entry.len(2);
            assert_eq!(entry.bytes(len), b"proof");
            let content = match kind {
                0 => {
                    let (level, id) = (entry.number(1), entry.bytes(32));
                    self.tree(level, id, entry.number(8))
                }
                1 => Vec::new(),
                _ => {
                    let len = entry.len(2);
                    [b"-> ", entry.bytes(len)].concat()
                }
            };
            assert_eq!(size, if kind == 0 { content.len() as u64 } else { 0 });
            assert!(entry.0.is_empty());
            files.push((format!("{directory}:{path}"), content));
        }
        files
    }

    /// Every chunk is named by a segment, with what its pack's table says.
    fn check_index(&self) {
        let mut named = 0;
        for path in list(&self.root.join("index")) {
            let (header, body) = unframe(&path, 3);
            let body = open_sealed(&self.object_key(&header, "index"), &header, 0, &body);
            let mut body = Take(&body);
            for _ in 0..body.number(4) {
                let id = hex(body.bytes(16));
                let path = self.root.join("packs").join(&id[..2]).join(&id);
                let (pack_header, _) = unframe(&path, 2);
                assert_eq!(body.bytes(4), &pack_header[12..16]);
                assert_eq!(body.bytes(32), &pack_header[48..80]);
                assert_eq!(body.number(8), std::fs::metadata(&path).unwrap().len());
                for _ in 0..body.number(4) {
                    let place = &self.chunks[body.bytes(32)];
                    assert_eq!((body.len(4), body.len(4)), (place.stored, place.plain));
                    assert_eq!((body.number(1), &place.pack), (place.compression, &path));
                    named += 1;
                }
            }
            assert!(body.0.is_empty());
        }
        assert_eq!(named, self.chunks.len());
    }
}
