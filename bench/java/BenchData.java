import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.util.HashMap;
import java.util.Map;
import org.rocksdb.BlockBasedTableConfig;
import org.rocksdb.CompactRangeOptions;
import org.rocksdb.CompactRangeOptions.BottommostLevelCompaction;
import org.rocksdb.CompressionType;
import org.rocksdb.FlushOptions;
import org.rocksdb.InfoLogLevel;
import org.rocksdb.Options;
import org.rocksdb.RocksDB;
import org.rocksdb.RocksDBException;
import org.rocksdb.WriteBatch;
import org.rocksdb.WriteOptions;

/**
 * Makes RocksDB directories of set entropy for the comparisons. Every value is a function of seed, row and round, so nothing repeats
 * between rows; the engine's own compression is off, so that what a backup tool can gain is what was asked for.
 *
 * <pre>
 *   BenchData fill DIR rows=N value=BYTES noise=0..1 seed=N table=BYTES     a new database, compacted into tables of that size
 *   BenchData change DIR rows=N value=BYTES noise=0..1 seed=N table=BYTES one_in=N round=N
 *                                                  one row in N, all over the keys, anew: one flush, no compaction
 * </pre>
 */
public final class BenchData {
  private static final int BATCH_BYTES = 1 << 20;

  private final Map<String, String> settings = new HashMap<>();
  private final String dir;
  private final long rows;
  private final int valueBytes;
  private final int noiseBytes;
  private final long seed;

  private BenchData(String[] words) {
    dir = words[1];
    for (int at = 2; at < words.length; at++) {
      String[] parts = words[at].split("=", 2);
      settings.put(parts[0], parts[1]);
    }
    rows = number("rows");
    valueBytes = Math.toIntExact(number("value"));
    noiseBytes = (int) Math.round(valueBytes * Double.parseDouble(setting("noise")) / 8) * 8;
    seed = mix(number("seed"));
  }

  public static void main(String[] words) throws RocksDBException {
    RocksDB.loadLibrary();
    var data = new BenchData(words);
    switch (words[0]) {
      case "fill" -> data.fill();
      case "change" -> data.change(data.number("one_in"), data.number("round"));
      default -> throw new IllegalArgumentException("fill or change, not " + words[0]);
    }
  }

  private void fill() throws RocksDBException {
    try (var options = options().setCreateIfMissing(true); var db = RocksDB.open(options, dir)) {
      write(db, 1, 0);
      // Tables of the asked size and no log that matters: what a database looks like that has come to rest.
      try (var all = new CompactRangeOptions().setBottommostLevelCompaction(BottommostLevelCompaction.kForce)) {
        db.compactRange(null, null, null, all);
      }
    }
  }

  private void change(long oneIn, long round) throws RocksDBException {
    try (var options = options(); var db = RocksDB.open(options, dir)) {
      write(db, oneIn, round);
    }
  }

  private void write(RocksDB db, long oneIn, long round) throws RocksDBException {
    try (var unlogged = new WriteOptions().setDisableWAL(true); var flush = new FlushOptions().setWaitForFlush(true)) {
      var batch = new WriteBatch();
      for (long row = 0; row < rows; row++) {
        if (oneIn > 1 && Long.remainderUnsigned(mix(row ^ mix(round)), oneIn) != 0) {
          continue;
        }
        batch.put(key(row), value(row, round));
        if (batch.getDataSize() >= BATCH_BYTES) {
          db.write(unlogged, batch);
          batch.clear();
        }
      }
      db.write(unlogged, batch);
      batch.close();
      db.flush(flush);
    }
  }

  private Options options() {
    // Table format 5: Debian's ldb (7.8) reads nothing newer.
    var table = new BlockBasedTableConfig().setFormatVersion(5);
    return new Options()
        .setTableFormatConfig(table)
        .setCompressionType(CompressionType.NO_COMPRESSION)
        .setTargetFileSizeBase(number("table"))
        .setWriteBufferSize(64 << 20)
        // Everything in one go at the end: compactions meanwhile would only cost time here.
        .setDisableAutoCompactions(true)
        .setLevel0SlowdownWritesTrigger(1 << 20)
        .setLevel0StopWritesTrigger(1 << 20)
        .setMaxCompactionBytes(1L << 40)
        // A line per table in LOG would be 16 MB that only some of the tools copy.
        .setInfoLogLevel(InfoLogLevel.WARN_LEVEL)
        .setMaxOpenFiles(1000);
  }

  private static byte[] key(long row) {
    return ByteBuffer.allocate(8).putLong(row).array();
  }

  private byte[] value(long row, long round) {
    var value = ByteBuffer.allocate(valueBytes).order(ByteOrder.LITTLE_ENDIAN);
    long state = mix(seed ^ mix(row) ^ mix(~round));
    for (int at = 0; at < noiseBytes; at += 8) {
      state += 0x9e3779b97f4a7c15L;
      value.putLong(mix(state));
    }
    byte[] bytes = value.array();
    java.util.Arrays.fill(bytes, noiseBytes, valueBytes, (byte) 'r');
    return bytes;
  }

  /** The finalizer of SplitMix64. */
  private static long mix(long number) {
    long z = number + 0x9e3779b97f4a7c15L;
    z = (z ^ (z >>> 30)) * 0xbf58476d1ce4e5b9L;
    z = (z ^ (z >>> 27)) * 0x94d049bb133111ebL;
    return z ^ (z >>> 31);
  }

  private String setting(String name) {
    String value = settings.get(name);
    if (value == null) {
      throw new IllegalArgumentException(name + "=… is missing");
    }
    return value;
  }

  private long number(String name) {
    return Long.parseLong(setting(name));
  }
}
