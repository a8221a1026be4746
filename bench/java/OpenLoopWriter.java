import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.util.Arrays;
import java.util.HashMap;
import java.util.Locale;
import java.util.Map;
import java.util.concurrent.locks.LockSupport;
import org.rocksdb.CompressionType;
import org.rocksdb.FlushOptions;
import org.rocksdb.Options;
import org.rocksdb.RocksDB;
import org.rocksdb.RocksDBException;
import org.rocksdb.WriteOptions;

/**
 * A database with the engine's own defaults (a log, no sync per write) and somebody who puts single rows into it, all over a bounded
 * set of keys. Every value is a function of seed and round and of which put of the round it is; the engine's own compression is off, so
 * that what a backup tool can gain is what was asked for.
 *
 * <pre>
 *   OpenLoopWriter fill DIR rows=N value=BYTES noise=0..1 seed=N round=0           a new database with every key once
 *   OpenLoopWriter best DIR … round=N seconds=N                 as many puts as it takes; says how many a second
 *   OpenLoopWriter run  DIR … round=N seconds=N lead=N rate=N   puts that are due at that rate; says how late they came
 * </pre>
 *
 * In <code>run</code> the schedule does not wait for the database: put <code>i</code> is due <code>i / rate</code> after the start, and
 * its time counts from then on, however long the puts before it took. The puts of the first <code>lead</code> seconds are made but not
 * counted. "begun" on standard output marks the start. Each mode ends with nothing left to flush or to compact, so that the next one
 * begins as this one did.
 */
public final class OpenLoopWriter {
  private static final double SECOND = 1e9;

  private final Map<String, String> settings = new HashMap<>();
  private final String dir;
  private final long rows;
  private final int noiseBytes;
  private final long seed;
  private final long round;
  // Used again for every put: what is thrown away must be collected, and the collector's pauses are not the database's.
  private final ByteBuffer key = ByteBuffer.allocate(8);
  private final ByteBuffer value;

  private OpenLoopWriter(String[] words) {
    dir = words[1];
    for (int at = 2; at < words.length; at++) {
      String[] parts = words[at].split("=", 2);
      settings.put(parts[0], parts[1]);
    }
    rows = number("rows");
    int valueBytes = Math.toIntExact(number("value"));
    noiseBytes = (int) Math.round(valueBytes * Double.parseDouble(setting("noise")) / 8) * 8;
    seed = mix(number("seed"));
    round = mix(~number("round"));
    value = ByteBuffer.allocate(valueBytes).order(ByteOrder.LITTLE_ENDIAN);
    Arrays.fill(value.array(), (byte) 'r');
  }

  public static void main(String[] words) throws RocksDBException, InterruptedException {
    RocksDB.loadLibrary();
    var writer = new OpenLoopWriter(words);
    try (var options = new Options().setCreateIfMissing(true).setCompressionType(CompressionType.NO_COMPRESSION);
        var db = RocksDB.open(options, writer.dir);
        var defaults = new WriteOptions()) {
      switch (words[0]) {
        case "fill" -> writer.fill(db, defaults);
        case "best" -> writer.best(db, defaults);
        case "run" -> writer.run(db, defaults);
        default -> throw new IllegalArgumentException("fill, best or run, not " + words[0]);
      }
      rest(db);
    }
  }

  private void fill(RocksDB db, WriteOptions options) throws RocksDBException {
    for (long row = 0; row < rows; row++) {
      put(db, options, row, mix(row));
    }
  }

  /** The first half is not counted: it lives on what the engine puts off, and the second pays for that. */
  private void best(RocksDB db, WriteOptions options) throws RocksDBException {
    long half = (long) (number("seconds") * SECOND / 2);
    long begin = System.nanoTime();
    long puts = 0;
    while (System.nanoTime() - begin < half) {
      putAnywhere(db, options, puts++);
    }
    long before = puts;
    long middle = System.nanoTime();
    while (System.nanoTime() - middle < half) {
      putAnywhere(db, options, puts++);
    }
    double seconds = (System.nanoTime() - middle) / SECOND;
    say("{\"puts_per_second\":%.1f}", (puts - before) / seconds);
  }

  private void run(RocksDB db, WriteOptions options) throws RocksDBException {
    long seconds = number("seconds");
    long rate = number("rate");
    int uncounted = Math.toIntExact(number("lead") * rate);
    int all = Math.toIntExact(uncounted + seconds * rate);
    long[] late = new long[all];
    System.out.println("begun");
    long start = System.nanoTime();
    long end = due(start, all, rate);
    int made = 0;
    int inTime = 0;
    for (long now = start; made < all && now < end; made++) {
      long due = due(start, made, rate);
      // It sleeps as a server does: one that spins would take a processor that a real one leaves to others.
      for (now = System.nanoTime(); now < due; now = System.nanoTime()) {
        LockSupport.parkNanos(due - now);
      }
      putAnywhere(db, options, made);
      now = System.nanoTime();
      late[made] = now - due;
      if (made >= uncounted && now <= end) {
        inTime++;
      }
    }
    // Those whose turn never came are as late as they are by now, at least. To leave them out would praise the longest wait.
    long now = System.nanoTime();
    for (int at = made; at < all; at++) {
      late[at] = now - due(start, at, rate);
    }
    long[] counted = Arrays.copyOfRange(late, uncounted, all);
    Arrays.sort(counted);
    say(
        "{\"puts_per_second\":%.1f,\"p50_us\":%.1f,\"p99_us\":%.1f,\"p999_us\":%.1f,\"max_us\":%.1f}",
        (double) inTime / seconds,
        percentile(counted, 50),
        percentile(counted, 99),
        percentile(counted, 99.9),
        percentile(counted, 100));
  }

  private static long due(long start, int put, long rate) {
    return start + (long) (put * (SECOND / rate));
  }

  /** The smallest value that at least that many percent do not exceed, in microseconds. */
  private static double percentile(long[] sorted, double percent) {
    int rank = (int) Math.ceil(percent / 100 * sorted.length);
    return sorted[Math.max(rank, 1) - 1] / 1e3;
  }

  private void putAnywhere(RocksDB db, WriteOptions options, long number) throws RocksDBException {
    long random = mix(number ^ round);
    put(db, options, Long.remainderUnsigned(random, rows), random);
  }

  private void put(RocksDB db, WriteOptions options, long row, long random) throws RocksDBException {
    key.putLong(0, row);
    long state = mix(seed ^ random);
    for (int at = 0; at < noiseBytes; at += 8) {
      state += 0x9e3779b97f4a7c15L;
      value.putLong(at, mix(state));
    }
    db.put(options, key.array(), value.array());
  }

  /** Until the engine has nothing left to do. */
  private static void rest(RocksDB db) throws RocksDBException, InterruptedException {
    try (var flush = new FlushOptions().setWaitForFlush(true)) {
      db.flush(flush);
    }
    // What has ended may be followed by what it made necessary, which is not pending yet.
    for (int still = 0; still < 5; still++) {
      Thread.sleep(20);
      if (db.getLongProperty("rocksdb.compaction-pending") + db.getLongProperty("rocksdb.num-running-compactions") > 0) {
        still = -1;
      }
    }
  }

  /** The finalizer of SplitMix64. */
  private static long mix(long number) {
    long z = number + 0x9e3779b97f4a7c15L;
    z = (z ^ (z >>> 30)) * 0xbf58476d1ce4e5b9L;
    z = (z ^ (z >>> 27)) * 0x94d049bb133111ebL;
    return z ^ (z >>> 31);
  }

  private static void say(String format, Object... numbers) {
    // Whatever the locale, a point is a point.
    System.out.println(String.format(Locale.ROOT, format, numbers));
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
