import java.io.BufferedReader;
import java.io.InputStreamReader;
import java.io.RandomAccessFile;
import java.nio.ByteBuffer;
import java.nio.MappedByteBuffer;
import java.nio.channels.FileChannel;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.Collections;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.Properties;
import java.util.TreeMap;
import org.rocksdb.BlockBasedTableConfig;
import org.rocksdb.ColumnFamilyDescriptor;
import org.rocksdb.ColumnFamilyHandle;
import org.rocksdb.ColumnFamilyOptions;
import org.rocksdb.CompressionType;
import org.rocksdb.DBOptions;
import org.rocksdb.DbPath;
import org.rocksdb.Env;
import org.rocksdb.EnvOptions;
import org.rocksdb.IngestExternalFileOptions;
import org.rocksdb.MutableColumnFamilyOptions;
import org.rocksdb.Options;
import org.rocksdb.ReadOptions;
import org.rocksdb.RocksDB;
import org.rocksdb.RocksDBException;
import org.rocksdb.RocksIterator;
import org.rocksdb.SstFileManager;
import org.rocksdb.SstFileWriter;
import org.rocksdb.Transaction;
import org.rocksdb.TransactionDB;
import org.rocksdb.TransactionDBOptions;
import org.rocksdb.TransactionOptions;
import org.rocksdb.WALRecoveryMode;
import org.rocksdb.WriteBatch;
import org.rocksdb.WriteOptions;

/**
 * A writer on RocksDB whose whole content is a function of how many commits it made, and the checker that holds a copy
 * against that function. Both are built against one release of rocksdbjni; they share nothing with the program under test.
 *
 * <p>Thread t commits 0, 1, 2, … Commit i puts, in one atomic batch and into each family f whose stride divides i, the key
 * (t, (i / stride) mod slots) with a value made of i, f and t. So after commit N slot s of f holds the newest k ≤ N / stride with
 * k ≡ s, and nothing else: an image that fits that for any N is an exact prefix, and one with a hole fits it for none.
 *
 * <p>The ledger is a file of big-endian words that outlives a kill of the writer: per thread `begun` (stored before the
 * commit) and `acked` (stored after it), then the same two for the churn of families.
 *
 * <pre>
 *   RocksOracle write DIR LEDGER setting=value …     writes until killed, or `limit` commits per thread
 *   RocksOracle check setting=value …                reads lines "DIR TAB acked,… TAB begun,… [TAB setting=value …]", answers each
 * </pre>
 */
public final class RocksOracle {
  static final int MAX_THREADS = 8;
  static final int LEDGER_BYTES = 16 * (MAX_THREADS + 2);
  static final int CHURN = MAX_THREADS;
  static final int CHURN_ROWS = 20;
  static final int CHURN_LIVING = 3;
  static final int CHURN_RING = 200;
  static final int INGEST_EVERY = 400;
  static final int INGEST_ROWS = 50;
  static final int INGEST_RING = 40;

  private RocksOracle() {}

  public static void main(String[] words) throws Exception {
    System.loadLibrary("rocksdbjni");
    RocksDB.loadLibrary();
    switch (words[0]) {
      case "write" -> new Writer(Settings.parse(words, 3), words[1], words[2]).run();
      case "check" -> serve(Settings.parse(words, 1));
      default -> throw new IllegalArgumentException("write or check, not " + words[0]);
    }
  }

  // ---------------------------------------------------------------------------------------------------------- settings

  /** What both sides must know of how a database is laid out and written. */
  static final class Settings {
    final Map<String, String> values = new HashMap<>();

    static Settings parse(String[] words, int from) {
      var settings = new Settings();
      for (int w = from; w < words.length; w++) settings.add(words[w]);
      return settings;
    }

    void add(String word) {
      int equals = word.indexOf('=');
      if (equals < 1) throw new IllegalArgumentException("not setting=value: " + word);
      values.put(word.substring(0, equals), word.substring(equals + 1));
    }

    Settings with(String[] words, int from) {
      var more = new Settings();
      more.values.putAll(values);
      for (int w = from; w < words.length; w++) more.add(words[w]);
      return more;
    }

    String text(String name, String otherwise) { return values.getOrDefault(name, otherwise); }
    long number(String name, long otherwise) { return Long.parseLong(text(name, Long.toString(otherwise))); }
    boolean on(String name) { return text(name, "false").equals("true"); }
    int families() { return (int) number("families", 3); }
    int threads() { return (int) number("threads", 1); }
    long slots() { return number("slots", 20_000); }
    int valueBytes() { return (int) number("value", 300); }
    long stride(int family) {
      var strides = text("strides", "1").split(",");
      return Long.parseLong(strides[Math.min(family, strides.length - 1)]);
    }
    String familyName(int family) { return family == 0 ? "default" : "family" + family; }

    DBOptions dbOptions() throws RocksDBException {
      var byName = new Properties();
      values.forEach((name, value) -> { if (name.startsWith("db.")) byName.put(name.substring(3), value); });
      var options = byName.isEmpty() ? new DBOptions() : DBOptions.getDBOptionsFromProps(byName);
      if (options == null) throw new IllegalArgumentException("this release does not know one of " + byName);
      options.setMaxBackgroundJobs(3).setParanoidChecks(true);
      if (on("atomic_flush")) options.setAtomicFlush(true);
      if (on("two_pc")) options.setAllow2pc(true);
      if (on("manual_wal_flush")) options.setManualWalFlush(true);
      if (values.containsKey("recycle")) options.setRecycleLogFileNum(number("recycle", 0));
      if (values.containsKey("manifest_bytes")) options.setMaxManifestFileSize(number("manifest_bytes", 0));
      if (values.containsKey("max_total_wal")) options.setMaxTotalWalSize(number("max_total_wal", 0));
      if (values.containsKey("wal_ttl")) options.setWalTtlSeconds(number("wal_ttl", 0));
      if (values.containsKey("wal_dir")) options.setWalDir(text("wal_dir", ""));
      if (values.containsKey("db_paths")) options.setDbPaths(paths(text("db_paths", "")));
      if (values.containsKey("recovery")) options.setWalRecoveryMode(WALRecoveryMode.valueOf(text("recovery", "")));
      return options;
    }

    ColumnFamilyOptions familyOptions(int family) {
      long memtable = number("memtable", 1 << 20);
      var options = new ColumnFamilyOptions()
          // Families that rotate at different times leave logs that some have flushed and others have not.
          .setWriteBufferSize(memtable - memtable * (family % 3) / 4)
          .setTargetFileSizeBase(number("table", 1 << 20))
          .setLevel0FileNumCompactionTrigger(2)
          .setMaxBytesForLevelBase(4 << 20)
          .setCompressionType(CompressionType.NO_COMPRESSION);
      if (on("blobs")) {
        options.setEnableBlobFiles(true).setMinBlobSize(100).setBlobFileSize(number("table", 1 << 20))
            .setEnableBlobGarbageCollection(true).setBlobGarbageCollectionAgeCutoff(0.5);
      }
      if (values.containsKey("merge")) {
        int held = (int) number("merge", 1);
        options.setMinWriteBufferNumberToMerge(held).setMaxWriteBufferNumber(2 * held);
      }
      var own = text("cf_paths." + familyName(family), null);
      if (own != null) options.setCfPaths(paths(own));
      return options;
    }

    static List<DbPath> paths(String text) {
      var paths = new ArrayList<DbPath>();
      for (String path : text.split(",")) {
        // DIR@BYTES: the first directory takes that much, the rest goes on.
        int at = path.lastIndexOf('@');
        long bytes = at < 0 ? 1L << 40 : Long.parseLong(path.substring(at + 1));
        paths.add(new DbPath(Path.of(at < 0 ? path : path.substring(0, at)), bytes));
      }
      return paths;
    }
  }

  // ------------------------------------------------------------------------------------------------------ rows as functions

  static byte[] key(int thread, long slot) {
    return ByteBuffer.allocate(9).put((byte) thread).putLong(slot).array();
  }

  /** Between the keys of the batches, so that an ingested table overlaps what is in memory. */
  static byte[] ingestedKey(long slot) {
    return ByteBuffer.allocate(10).put((byte) 0).putLong(slot).put((byte) 'I').array();
  }

  /** The bytes of a value behind its two leading words: incompressible, and a function of its place. */
  static void fill(byte[] value, int from, long seed) {
    long state = seed * 0x9E3779B97F4A7C15L + 0x632BE59BD9B4E019L;
    for (int at = from; at < value.length; at += 8) {
      state ^= state << 13;
      state ^= state >>> 7;
      state ^= state << 17;
      for (int b = 0; b < 8 && at + b < value.length; b++) value[at + b] = (byte) (state >>> (8 * b));
    }
  }

  static byte[] value(long i, long seen, int thread, int family, int bytes) {
    // Lengths differ from row to row, so that records end everywhere in a block.
    var value = new byte[Math.max(16, bytes - 40 + (int) ((i * 31 + family * 7) % 80))];
    ByteBuffer.wrap(value).putLong(i).putLong(seen);
    fill(value, 16, i * 64 + thread * 8 + family);
    return value;
  }

  static byte[] ingestedValue(long ingestion, int row) {
    var value = new byte[120];
    ByteBuffer.wrap(value).putLong(ingestion).putLong(-1);
    fill(value, 16, ~(ingestion * 100 + row));
    return value;
  }

  static byte[] churnKey(long slot, int row) {
    return ByteBuffer.allocate(12).putLong(slot).putInt(row).array();
  }

  static byte[] churnValue(long turn, int row) {
    var value = new byte[200];
    ByteBuffer.wrap(value).putLong(turn).putLong(row);
    fill(value, 16, ~(turn * 64 + row));
    return value;
  }

  // ------------------------------------------------------------------------------------------------------------ writing

  static final class Writer {
    final Settings settings;
    final String dir;
    final MappedByteBuffer ledger;
    final List<ColumnFamilyHandle> handles = new ArrayList<>();
    /** In the names of transactions: one that was recovered keeps its name even when it is rolled back. */
    final long opened = System.nanoTime();
    RocksDB db;

    Writer(Settings settings, String dir, String ledgerPath) throws Exception {
      this.settings = settings;
      this.dir = dir;
      try (var file = new RandomAccessFile(ledgerPath, "rw")) {
        boolean fresh = file.length() == 0;
        ledger = file.getChannel().map(FileChannel.MapMode.READ_WRITE, 0, LEDGER_BYTES);
        if (fresh) for (int at = 0; at < LEDGER_BYTES; at += 8) ledger.putLong(at, -1);
      }
    }

    void begin(int thread, long i) { ledger.putLong(16 * thread, i); }
    void acknowledge(int thread, long i) { ledger.putLong(16 * thread + 8, i); }
    long acknowledged(int thread) { return ledger.getLong(16 * thread + 8); }

    void run() throws Exception {
      Files.createDirectories(Path.of(dir));
      var options = settings.dbOptions().setCreateIfMissing(true).setCreateMissingColumnFamilies(true);
      if (settings.values.containsKey("delete_rate")) {
        options.setSstFileManager(new SstFileManager(
            Env.getDefault(), null, settings.number("delete_rate", 0), 1000.0, settings.number("delete_chunk", 100_000)));
      }
      var families = new ArrayList<ColumnFamilyDescriptor>();
      for (int f = 0; f < settings.families(); f++) {
        families.add(new ColumnFamilyDescriptor(settings.familyName(f).getBytes(StandardCharsets.UTF_8), settings.familyOptions(f)));
      }
      // After a kill there are families of the churn as well, and all must be opened.
      var known = families.stream().map(family -> new String(family.getName(), StandardCharsets.UTF_8)).toList();
      if (Files.exists(Path.of(dir, "CURRENT"))) {
        for (byte[] name : RocksDB.listColumnFamilies(new Options(), dir)) {
          if (!known.contains(new String(name, StandardCharsets.UTF_8))) {
            families.add(new ColumnFamilyDescriptor(name, settings.familyOptions(0)));
          }
        }
      }
      db = settings.on("transactions")
          ? TransactionDB.open(options, new TransactionDBOptions(), dir, families, handles)
          : RocksDB.open(options, dir, families, handles);
      // What a killed run had prepared and not committed was never acknowledged: the same commit comes again.
      if (db instanceof TransactionDB transactions) {
        for (var prepared : transactions.getAllPreparedTransactions()) prepared.rollback();
      }
      var threads = new ArrayList<Thread>();
      for (int t = 0; t < settings.threads(); t++) {
        int thread = t;
        threads.add(start(() -> commits(thread)));
      }
      if (settings.on("churn")) start(this::churn);
      System.out.println("writing");
      for (var thread : threads) thread.join();
      // Only a writer with a limit comes here.
      for (var handle : handles) handle.close();
      db.close();
      System.out.println("closed");
      System.exit(0);
    }

    interface Work { void run() throws Exception; }

    static Thread start(Work work) {
      var thread = new Thread(() -> {
        try {
          work.run();
        } catch (Throwable broken) {
          broken.printStackTrace();
          System.exit(3);
        }
      });
      thread.start();
      return thread;
    }

    void commits(int thread) throws Exception {
      long limit = settings.number("limit", Long.MAX_VALUE);
      long pace = settings.number("pace", 0);
      long flushEvery = settings.on("manual_wal_flush") ? settings.number("flush_every", 500) : 0;
      int others = settings.threads();
      long from = System.nanoTime();
      long first = acknowledged(thread) + 1;
      try (var unsynced = new WriteOptions().setSync(settings.on("sync"))) {
        for (long i = first; i < limit; i++) {
          begin(thread, i);
          long seen = others > 1 ? acknowledged((thread + 1) % others) : -1;
          if (settings.on("ingestion") && i % INGEST_EVERY == 0) ingest(i / INGEST_EVERY);
          if (settings.on("transactions")) transact(unsynced, thread, i, seen);
          else try (var batch = batch(thread, i, seen)) { db.write(unsynced, batch); }
          if (flushEvery == 0) {
            acknowledge(thread, i);
          } else if (i % flushEvery == flushEvery - 1) {
            // With this setting a write is promised to outlive the process only once its log is flushed.
            db.flushWal(false);
            acknowledge(thread, i);
          }
          if (pace > 0) {
            long ahead = from + (i - first) * 1_000_000_000L / pace - System.nanoTime();
            if (ahead > 1_000_000) Thread.sleep(ahead / 1_000_000);
          }
        }
        if (flushEvery > 0) db.flushWal(false);
      }
    }

    WriteBatch batch(int thread, long i, long seen) throws RocksDBException {
      var batch = new WriteBatch();
      for (int f = 0; f < settings.families(); f++) {
        long stride = settings.stride(f);
        if (i % stride == 0) {
          batch.put(handles.get(f), key(thread, i / stride % settings.slots()), value(i, seen, thread, f, settings.valueBytes()));
        }
      }
      return batch;
    }

    void transact(WriteOptions unsynced, int thread, long i, long seen) throws RocksDBException {
      var transactions = (TransactionDB) db;
      if (i % 10 == 9) {
        // One that is prepared and rolled back: nothing of it may ever be seen.
        try (var given = transactions.beginTransaction(unsynced, new TransactionOptions())) {
          for (int f = 0; f < settings.families(); f++) given.put(handles.get(f), key(thread, i % settings.slots()), new byte[20]);
          if (settings.on("two_pc")) {
            given.setName("given-up-" + thread + "-" + i + "-" + opened);
            prepare(given);
          }
          given.rollback();
        }
      }
      try (Transaction transaction = transactions.beginTransaction(unsynced, new TransactionOptions())) {
        for (int f = 0; f < settings.families(); f++) {
          long stride = settings.stride(f);
          if (i % stride == 0) {
            transaction.put(handles.get(f), key(thread, i / stride % settings.slots()), value(i, seen, thread, f, settings.valueBytes()));
          }
        }
        if (settings.on("two_pc")) {
          transaction.setName("commit-" + thread + "-" + i + "-" + opened);
          prepare(transaction);
        }
        transaction.commit();
      }
    }

    /** Public since 7.0; the native side was there before. */
    static void prepare(Transaction transaction) {
      try {
        var prepare = Transaction.class.getDeclaredMethod("prepare");
        prepare.setAccessible(true);
        prepare.invoke(transaction);
      } catch (ReflectiveOperationException refused) {
        throw new IllegalStateException("a transaction could not be prepared", refused);
      }
    }

    void ingest(long ingestion) throws Exception {
      var outside = Path.of(dir + ".ingest");
      Files.createDirectories(outside);
      var table = outside.resolve(ingestion + ".sst");
      Files.deleteIfExists(table);
      try (var options = new Options(); var env = new EnvOptions(); var writer = new SstFileWriter(env, options)) {
        writer.open(table.toString());
        for (int row = 0; row < INGEST_ROWS; row++) {
          writer.put(ingestedKey(ingestion % INGEST_RING * INGEST_ROWS + row), ingestedValue(ingestion, row));
        }
        writer.finish();
      }
      try (var how = new IngestExternalFileOptions().setMoveFiles(ingestion % 2 == 0)) {
        db.ingestExternalFile(handles.get(0), List.of(table.toString()), how);
      }
      Files.deleteIfExists(table);
    }

    /** Families that come and go: each gets its rows in batches shared with a permanent family. */
    void churn() throws Exception {
      var living = new TreeMap<Long, ColumnFamilyHandle>();
      for (int h = settings.families(); h < handles.size(); h++) {
        living.put(Long.parseLong(new String(handles.get(h).getName(), StandardCharsets.UTF_8).substring(3)), handles.get(h));
      }
      var partner = handles.get(1);
      try (var unsynced = new WriteOptions()) {
        // A turn that was cut short by a kill is finished: its rows are a function of the turn.
        for (long turn = acknowledged(CHURN) + 1; ; turn++) {
          begin(CHURN, turn);
          var family = living.get(turn);
          if (family == null) {
            family = db.createColumnFamily(new ColumnFamilyDescriptor(("tmp" + turn).getBytes(StandardCharsets.UTF_8), settings.familyOptions(0)));
            living.put(turn, family);
          }
          for (int row = 0; row < CHURN_ROWS; row++) {
            try (var batch = new WriteBatch()) {
              batch.put(family, churnKey(turn, row), churnValue(turn, row));
              batch.put(partner, concat((byte) 0x7f, churnKey(turn % CHURN_RING, row)), churnValue(turn, row));
              db.write(unsynced, batch);
            }
          }
          for (long old : List.copyOf(living.headMap(turn - CHURN_LIVING, true).keySet())) {
            try (var handle = living.remove(old)) { db.dropColumnFamily(handle); }
          }
          acknowledge(CHURN, turn);
          if (turn % 5 == 0) {
            db.setOptions(handles.get(0), MutableColumnFamilyOptions.builder().setWriteBufferSize((1 << 20) + turn % 2 * 4096).build());
          }
          Thread.sleep(settings.number("churn_pause", 20));
        }
      }
    }
  }

  static byte[] concat(byte first, byte[] rest) {
    return ByteBuffer.allocate(1 + rest.length).put(first).put(rest).array();
  }

  // ----------------------------------------------------------------------------------------------------------- checking

  static void serve(Settings settings) throws Exception {
    System.out.println("ready");
    var lines = new BufferedReader(new InputStreamReader(System.in, StandardCharsets.UTF_8));
    for (String line; (line = lines.readLine()) != null; ) {
      String answer;
      try {
        var words = line.split("\t");
        answer = "ok " + new Checker(settings.with(words, 3), words[0], numbers(words[1]), numbers(words[2])).check();
      } catch (Wrong wrong) {
        answer = "wrong " + wrong.getMessage();
      } catch (RocksDBException refused) {
        answer = "wrong the engine says: " + refused.getMessage();
      } catch (Exception broken) {
        answer = "broken " + broken;
        broken.printStackTrace();
      }
      System.out.println(answer.replace('\n', ' '));
    }
  }

  static long[] numbers(String text) { return Arrays.stream(text.split(",")).mapToLong(Long::parseLong).toArray(); }

  static final class Wrong extends Exception {
    Wrong(String what) { super(what); }
  }

  static final class Checker {
    final Settings settings;
    final String dir;
    final long[] acked;
    final long[] begun;
    long rows;

    Checker(Settings settings, String dir, long[] acked, long[] begun) {
      this.settings = settings;
      this.dir = dir;
      this.acked = acked;
      this.begun = begun;
    }

    String check() throws Exception {
      var names = new ArrayList<String>();
      for (byte[] name : RocksDB.listColumnFamilies(new Options(), dir)) names.add(new String(name, StandardCharsets.UTF_8));
      var families = new ArrayList<ColumnFamilyDescriptor>();
      for (String name : names) {
        int f = 0;
        for (int known = 1; known < settings.families(); known++) if (name.equals(settings.familyName(known))) f = known;
        families.add(new ColumnFamilyDescriptor(name.getBytes(StandardCharsets.UTF_8), settings.familyOptions(f).setDisableAutoCompactions(true)));
      }
      var handles = new ArrayList<ColumnFamilyHandle>();
      var options = settings.dbOptions();
      try (var db = settings.on("transactions")
          ? TransactionDB.open(options, new TransactionDBOptions(), dir, families, handles)
          : RocksDB.open(options, dir, families, handles)) {
        // Up to 7.x this call opens ingested tables without the sequence number that the MANIFEST gives them, and refuses
        // them even in the live database; each row is read with its checksum below in any case.
        if (!settings.on("skip_verify")) db.verifyChecksum();
        var byName = new HashMap<String, Map<ByteBuffer, byte[]>>();
        for (int h = 0; h < handles.size(); h++) byName.put(names.get(h), scan(db, handles.get(h)));
        long[] newest = newest(byName);
        prefix(byName, newest);
        if (settings.on("ingestion")) ingested(byName.get("default"), newest[0]);
        if (settings.on("churn")) churned(byName);
        for (int t = 0; t < newest.length; t++) {
          if (newest[t] < acked[t]) throw new Wrong("thread " + t + " ends at " + newest[t] + ", but " + acked[t] + " was acknowledged before");
          if (newest[t] > begun[t]) throw new Wrong("thread " + t + " ends at " + newest[t] + ", but only " + begun[t] + " was begun when it ended");
        }
        for (var left : byName.entrySet()) {
          if (!left.getValue().isEmpty()) throw new Wrong(left.getValue().size() + " rows in " + left.getKey() + " that nobody wrote");
        }
        for (var handle : handles) handle.close();
        return "n=" + Arrays.toString(newest).replace(" ", "") + " rows=" + rows + " families=" + names.size();
      }
    }

    Map<ByteBuffer, byte[]> scan(RocksDB db, ColumnFamilyHandle handle) throws RocksDBException {
      var found = new HashMap<ByteBuffer, byte[]>();
      try (var checked = new ReadOptions().setVerifyChecksums(true).setFillCache(false); var rows = db.newIterator(handle, checked)) {
        for (rows.seekToFirst(); rows.isValid(); rows.next()) found.put(ByteBuffer.wrap(rows.key()), rows.value());
        rows.status();
      }
      this.rows += found.size();
      return found;
    }

    /** The newest commit of each thread that any family shows. */
    long[] newest(Map<String, Map<ByteBuffer, byte[]>> byName) throws Wrong {
      var newest = new long[settings.threads()];
      Arrays.fill(newest, -1);
      for (int f = 0; f < settings.families(); f++) {
        var found = byName.get(settings.familyName(f));
        if (found == null) throw new Wrong("family " + settings.familyName(f) + " is missing");
        for (var row : found.entrySet()) {
          if (row.getKey().remaining() != 9 || row.getValue().length < 16) continue;
          int thread = row.getKey().get(0);
          if (thread < newest.length) newest[thread] = Math.max(newest[thread], ByteBuffer.wrap(row.getValue()).getLong(0));
        }
      }
      return newest;
    }

    /** Takes away every row that the commits 0 … newest explain; the first that is not as it must be is named. */
    void prefix(Map<String, Map<ByteBuffer, byte[]>> byName, long[] newest) throws Wrong {
      for (int t = 0; t < newest.length; t++) {
        for (int f = 0; f < settings.families(); f++) {
          var found = byName.get(settings.familyName(f));
          long stride = settings.stride(f);
          long last = newest[t] < 0 ? -1 : newest[t] / stride;
          for (long slot = 0; slot < settings.slots(); slot++) {
            long k = last - Math.floorMod(last - slot, settings.slots());
            var value = found.remove(ByteBuffer.wrap(key(t, slot)));
            var where = "family " + settings.familyName(f) + ", thread " + t + ", slot " + slot;
            if (k < 0) {
              if (value != null) throw new Wrong(where + ": a row where none can be after " + newest[t]);
              continue;
            }
            long i = k * stride;
            if (value == null) throw new Wrong(where + ": no row, must hold commit " + i + " of " + newest[t]);
            if (value.length < 16) throw new Wrong(where + ": a row of a transaction that was rolled back");
            long holds = ByteBuffer.wrap(value).getLong(0);
            if (holds != i) throw new Wrong(where + ": holds commit " + holds + ", must hold " + i + " of " + newest[t]);
            long seen = ByteBuffer.wrap(value).getLong(8);
            if (!Arrays.equals(value, value(i, seen, t, f, settings.valueBytes()))) throw new Wrong(where + ": commit " + i + " with other bytes");
            int other = (t + 1) % newest.length;
            if (seen > newest[other]) {
              throw new Wrong(where + ": commit " + i + " is there, but not commit " + seen + " of thread " + other + ", acknowledged before it began");
            }
          }
        }
      }
    }

    void ingested(Map<ByteBuffer, byte[]> found, long newest) throws Wrong {
      long last = newest < 0 ? -1 : newest / INGEST_EVERY;
      // The next one may be in, when the image ends between it and the batch behind it.
      var next = found.get(ByteBuffer.wrap(ingestedKey((last + 1) % INGEST_RING * INGEST_ROWS)));
      if (next != null && next.length >= 16 && ByteBuffer.wrap(next).getLong(0) == last + 1) {
        if ((last + 1) * INGEST_EVERY != newest + 1) throw new Wrong("ingestion " + (last + 1) + " is there, but commits end at " + newest);
        last++;
      }
      for (long place = 0; place < INGEST_RING; place++) {
        long ingestion = last - Math.floorMod(last - place, (long) INGEST_RING);
        if (ingestion < 0) continue;
        for (int row = 0; row < INGEST_ROWS; row++) {
          var value = found.remove(ByteBuffer.wrap(ingestedKey(place * INGEST_ROWS + row)));
          if (!Arrays.equals(value, ingestedValue(ingestion, row))) throw new Wrong("ingestion " + ingestion + ", row " + row + ": missing or other");
        }
      }
    }

    void churned(Map<String, Map<ByteBuffer, byte[]>> byName) throws Wrong {
      var living = new TreeMap<Long, Map<ByteBuffer, byte[]>>();
      byName.forEach((name, found) -> { if (name.startsWith("tmp")) living.put(Long.parseLong(name.substring(3)), found); });
      long last = living.isEmpty() ? -1 : living.lastKey();
      if (last < acked[settings.threads()] || last > begun[settings.threads()]) {
        throw new Wrong("the newest family is tmp" + last + ", outside " + acked[settings.threads()] + " … " + begun[settings.threads()]);
      }
      for (long turn = Math.max(0, last - CHURN_LIVING + 1); turn <= last; turn++) {
        if (!living.containsKey(turn)) throw new Wrong("family tmp" + turn + " is missing, the newest is tmp" + last);
      }
      var partner = byName.get(settings.familyName(1));
      for (long turn = Math.max(0, last - CHURN_RING + 1); turn <= last; turn++) {
        int count = 0;
        for (; count < CHURN_ROWS; count++) {
          var key = ByteBuffer.wrap(concat((byte) 0x7f, churnKey(turn % CHURN_RING, count)));
          if (!Arrays.equals(partner.get(key), churnValue(turn, count))) break;
          partner.remove(key);
        }
        if (turn < last && count < CHURN_ROWS) throw new Wrong("turn " + turn + " has " + count + " partner rows, but turn " + last + " had begun");
        var own = living.get(turn);
        for (int row = 0; own != null && row < count; row++) {
          if (!Arrays.equals(own.remove(ByteBuffer.wrap(churnKey(turn, row))), churnValue(turn, row))) {
            throw new Wrong("a batch is torn: turn " + turn + ", row " + row + " is in the partner family only");
          }
        }
      }
      // Rows of the turn that the newest one is about to replace.
      long replaced = last - CHURN_RING;
      for (int row = 0; replaced >= 0 && row < CHURN_ROWS; row++) {
        var key = ByteBuffer.wrap(concat((byte) 0x7f, churnKey(replaced % CHURN_RING, row)));
        if (Arrays.equals(partner.get(key), churnValue(replaced, row))) partner.remove(key);
      }
    }
  }
}
