import java.io.IOException;
import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.UUID;
import java.util.regex.Matcher;
import java.util.regex.Pattern;
import java.util.zip.CRC32;

/**
 * Reads encore's rows and messages by their published schemas, and writes action batches.
 *
 * <pre>
 *     java Encore.java row FBS FILE        a stored row, as JSON
 *     java Encore.java message FBS FILE    a message of Kafka, as JSON
 *     java Encore.java write FILE          an action batch of three actions
 * </pre>
 *
 * Java 17 or newer, nothing else.
 */
public final class Encore {
    private Encore() {}

    // --- schemas ------------------------------------------------------------------------------

    record Field(String name, String type, boolean vector, int id) {}

    /** One presence byte of a struct: the fields of its bits, lowest first. */
    record Presence(String member, List<String> fields) {}

    record Type(List<Field> fields, List<Presence> presence) {}

    /** The part of the schema language that encore's schemas use. */
    record Schema(Map<String, Type> types, String root) {
        private static final Pattern OPENED = Pattern.compile("^(?:struct|table) (\\w+) \\{.*");
        private static final Pattern FIELD =
                Pattern.compile("^\\s+(\\w+): (\\[?)(\\w+)\\]?(?: \\(id: (\\d+)\\))?;.*");
        private static final String PRESENCE = "// set where not null: ";
        private static final Map<String, String> ALIASES = Map.of(
                "int8", "byte", "uint8", "ubyte", "int16", "short", "uint16", "ushort",
                "int32", "int", "uint32", "uint", "int64", "long", "uint64", "ulong");

        static Schema parse(String text) {
            Map<String, Type> types = new LinkedHashMap<>();
            String root = null;
            Type current = null;
            for (String line : text.split("\n")) {
                Matcher opened = OPENED.matcher(line);
                Matcher field = FIELD.matcher(line);
                if (opened.matches()) {
                    current = new Type(new ArrayList<>(), new ArrayList<>());
                    types.put(opened.group(1), current);
                } else if (line.startsWith("root_type ")) {
                    root = line.substring("root_type ".length()).replace(";", "");
                } else if (current != null && field.matches()) {
                    String id = field.group(4);
                    current.fields.add(new Field(
                            field.group(1),
                            ALIASES.getOrDefault(field.group(3), field.group(3)),
                            !field.group(2).isEmpty(),
                            id == null ? current.fields.size() : Integer.parseInt(id)));
                    int comment = line.indexOf(PRESENCE);
                    if (comment >= 0) {
                        List<String> names = new ArrayList<>();
                        for (String bit : line.substring(comment + PRESENCE.length()).split(", ")) {
                            names.add(bit.split(" ")[1]);
                        }
                        current.presence.add(new Presence(field.group(1), names));
                    }
                }
            }
            return new Schema(types, root);
        }

        /** Bytes of a scalar, or of a struct with its padding. */
        int size(String type) {
            Type struct = types.get(type);
            if (struct == null) {
                return switch (type) {
                    case "bool", "byte", "ubyte" -> 1;
                    case "short", "ushort" -> 2;
                    case "int", "uint", "float" -> 4;
                    case "long", "ulong", "double" -> 8;
                    default -> throw new IllegalArgumentException("unknown type " + type);
                };
            }
            int position = 0;
            int widest = 1;
            for (Field field : struct.fields) {
                position = align(position, size(field.type)) + size(field.type);
                widest = Math.max(widest, size(field.type));
            }
            return align(position, widest);
        }
    }

    private static int align(int position, int to) {
        return (position + to - 1) / to * to;
    }

    // --- reading ------------------------------------------------------------------------------

    /** A FlatBuffer's root table; fields that are absent have no entry. */
    static Map<String, Object> readTable(ByteBuffer data, Schema schema) {
        data.order(ByteOrder.LITTLE_ENDIAN);
        int table = data.getInt(0);
        int vtable = table - data.getInt(table);
        int vtableBytes = Short.toUnsignedInt(data.getShort(vtable));
        Map<String, Object> found = new LinkedHashMap<>();
        for (Field field : schema.types.get(schema.root).fields) {
            int entry = 4 + 2 * field.id;
            int offset = entry < vtableBytes ? Short.toUnsignedInt(data.getShort(vtable + entry)) : 0;
            if (offset == 0) {
                continue;
            }
            int at = table + offset;
            if (!field.vector) {
                found.put(field.name, read(data, at, field.type, schema));
                continue;
            }
            int vector = at + data.getInt(at);
            List<Object> elements = new ArrayList<>();
            for (int i = 0; i < data.getInt(vector); i++) {
                int element = vector + 4 + i * schema.size(field.type);
                elements.add(read(data, element, field.type, schema));
            }
            found.put(field.name, elements);
        }
        return found;
    }

    private static Object read(ByteBuffer data, int at, String type, Schema schema) {
        Type struct = schema.types.get(type);
        if (struct == null) {
            return switch (type) {
                case "bool" -> data.get(at) != 0;
                case "byte" -> data.get(at);
                case "ubyte" -> Byte.toUnsignedInt(data.get(at));
                case "short" -> data.getShort(at);
                case "ushort" -> Short.toUnsignedInt(data.getShort(at));
                case "int" -> data.getInt(at);
                case "uint" -> Integer.toUnsignedLong(data.getInt(at));
                case "long" -> data.getLong(at);
                case "ulong" -> new java.math.BigInteger(Long.toUnsignedString(data.getLong(at)));
                case "float" -> (double) data.getFloat(at);
                case "double" -> data.getDouble(at);
                default -> throw new IllegalArgumentException("unknown type " + type);
            };
        }
        Map<String, Object> members = new LinkedHashMap<>();
        int position = 0;
        for (Field field : struct.fields) {
            position = align(position, schema.size(field.type));
            members.put(field.name, read(data, at + position, field.type, schema));
            position += schema.size(field.type);
        }
        return members;
    }

    private static final int TRAILER_BYTES = 28;

    /** A stored row: its fields, null where they are null, and its trailer. */
    @SuppressWarnings("unchecked")
    static Map<String, Object> readRow(byte[] bytes, Schema schema) {
        ByteBuffer data = ByteBuffer.wrap(bytes).order(ByteOrder.LITTLE_ENDIAN);
        int end = bytes.length;
        CRC32 checksum = new CRC32();
        checksum.update(bytes, 0, Math.max(0, end - 4));
        if (end < TRAILER_BYTES || (int) checksum.getValue() != data.getInt(end - 4)) {
            throw new IllegalArgumentException(
                    "row: needs the checksum of its bytes, got another; the row is damaged");
        }
        Map<String, Object> table = readTable(data.slice(0, end - TRAILER_BYTES), schema);
        Map<String, Object> row = new LinkedHashMap<>();
        row.put("entity_id", table.get("entity_id"));
        for (Field group : schema.types.get(schema.root).fields) {
            Type type = schema.types.get(group.type);
            if (type == null) {
                continue;
            }
            // A row of an older plan has no such group.
            var struct = (Map<String, Object>) table.getOrDefault(group.name, Map.of());
            for (Presence presence : type.presence) {
                int bits = (int) struct.getOrDefault(presence.member, 0);
                for (int bit = 0; bit < presence.fields.size(); bit++) {
                    String name = presence.fields.get(bit);
                    Object value = struct.containsKey(name) ? struct.get(name) : table.get(name);
                    row.put(name, (bits >> bit & 1) == 1 ? value : null);
                }
            }
        }
        Map<String, Object> trailer = new LinkedHashMap<>();
        trailer.put("layout", Integer.toUnsignedLong(data.getInt(end - 28)));
        trailer.put("epoch", Integer.toUnsignedLong(data.getInt(end - 24)));
        trailer.put("offset", data.getLong(end - 20));
        trailer.put("newest_ms", data.getLong(end - 12));
        Map<String, Object> whole = new LinkedHashMap<>();
        whole.put("row", row);
        whole.put("trailer", trailer);
        return whole;
    }

    /** JSON text; what JSON cannot say (NaN, infinities) as a string. Names need no escapes. */
    static String toJson(Object value) {
        List<String> parts = new ArrayList<>();
        if (value instanceof Map<?, ?> map) {
            map.forEach((name, member) -> parts.add("\"" + name + "\":" + toJson(member)));
            return "{" + String.join(",", parts) + "}";
        }
        if (value instanceof List<?> list) {
            list.forEach(element -> parts.add(toJson(element)));
            return "[" + String.join(",", parts) + "]";
        }
        if (value instanceof Double number && !Double.isFinite(number)) {
            return "\"" + number + "\"";
        }
        return String.valueOf(value);
    }

    // --- writing ------------------------------------------------------------------------------

    /** Numbers are the messages'. */
    enum ActionType {
        IMPRESSION, PLAY, FINISH, CLICK, LONG_VIEW, LIKE,
        FOLLOW, COMMENT, SHARE, DISLIKE, PROFILE, DELETE_USER
    }

    /** One action; author, music, requestId and position are null where they are not known. */
    record Action(
            long user, long item, ActionType type, long timeMs, long value, UUID requestId,
            Long author, Long music, long[] tags, int scene, Integer position) {}

    private static final int VECTOR = 40; // where the structs begin: the front is always the same
    private static final int ACTION_BYTES = 96;

    /** One message; its actions are of one partition, its key is the user's id in decimal. */
    static byte[] encodeBatch(long sentMs, List<Action> actions) {
        ByteBuffer data = ByteBuffer.allocate(VECTOR + ACTION_BYTES * actions.size());
        data.order(ByteOrder.LITTLE_ENDIAN);
        data.putInt(16); // the table
        data.put("EACT".getBytes(StandardCharsets.US_ASCII));
        data.putShort((short) 8).putShort((short) 16).putShort((short) 8).putShort((short) 4);
        data.putInt(8); // back to the vtable
        data.putInt(VECTOR - 4 - 20); // on to the vector
        data.putLong(sentMs);
        data.putInt(VECTOR - 4, actions.size());
        for (int i = 0; i < actions.size(); i++) {
            put(data.position(VECTOR + ACTION_BYTES * i), actions.get(i));
        }
        return data.array();
    }

    private static void put(ByteBuffer data, Action action) {
        UUID request = action.requestId;
        int known = action.tags.length << 4;
        known |= (action.author == null ? 0 : 1) | (action.music == null ? 0 : 2);
        known |= (request == null ? 0 : 4) | (action.position == null ? 0 : 8);
        data.putLong(action.user).putLong(action.item);
        data.putLong(action.timeMs).putLong(action.value);
        data.putLong(request == null ? 0 : request.getMostSignificantBits());
        data.putLong(request == null ? 0 : request.getLeastSignificantBits());
        data.putLong(action.author == null ? 0 : action.author);
        data.putLong(action.music == null ? 0 : action.music);
        for (int i = 0; i < 3; i++) {
            data.putLong(i < action.tags.length ? action.tags[i] : 0);
        }
        data.putShort((short) action.scene);
        data.putShort((short) (action.position == null ? 0 : action.position));
        data.put((byte) (1 + action.type.ordinal())).put((byte) known);
    }

    // --- the command --------------------------------------------------------------------------

    private static byte[] exampleBatch() {
        UUID request = UUID.fromString("1c1f6a10-3c3b-4f8e-9b43-6f7c0a2b9d11");
        long time = 1650812741436L;
        return encodeBatch(1650812741500L, List.of(
                new Action(712, 5239, ActionType.IMPRESSION, time, 0, request,
                        7349781L, null, new long[] {39}, 1, 0),
                new Action(712, 5239, ActionType.PLAY, time + 4, 61802, request, 7349781L,
                        -9007199254740993L, new long[] {39, -1, Long.MAX_VALUE}, 1, 0),
                new Action(712, 0, ActionType.CLICK, time + 14, 0, null,
                        null, null, new long[0], 0, null)));
    }

    public static void main(String[] given) throws IOException {
        if (given[0].equals("write")) {
            Files.write(Path.of(given[1]), exampleBatch());
            return;
        }
        Schema schema = Schema.parse(Files.readString(Path.of(given[1])));
        byte[] bytes = Files.readAllBytes(Path.of(given[2]));
        boolean row = given[0].equals("row");
        System.out.println(toJson(
                row ? readRow(bytes, schema) : readTable(ByteBuffer.wrap(bytes), schema)));
    }
}
