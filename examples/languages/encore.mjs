// Reads encore's rows and messages by their published schemas, and writes action batches.
// Node 20.15 or newer, nothing else.
//
//     node encore.mjs row FBS FILE        a stored row, as JSON
//     node encore.mjs message FBS FILE    a message of Kafka, as JSON
//     node encore.mjs write FILE          an action batch of three actions
//
// 64-bit integers are BigInt here and plain digits in the JSON.

import { readFileSync, writeFileSync } from "node:fs";
import { pathToFileURL } from "node:url";
import { crc32 } from "node:zlib";

// --- schemas ----------------------------------------------------------------------------------

const SCALARS = {
  bool: [1, (view, at) => view.getUint8(at) !== 0],
  byte: [1, (view, at) => view.getInt8(at)],
  ubyte: [1, (view, at) => view.getUint8(at)],
  short: [2, (view, at) => view.getInt16(at, true)],
  ushort: [2, (view, at) => view.getUint16(at, true)],
  int: [4, (view, at) => view.getInt32(at, true)],
  uint: [4, (view, at) => view.getUint32(at, true)],
  long: [8, (view, at) => view.getBigInt64(at, true)],
  ulong: [8, (view, at) => view.getBigUint64(at, true)],
  float: [4, (view, at) => view.getFloat32(at, true)],
  double: [8, (view, at) => view.getFloat64(at, true)],
};
const ALIASES = {
  int8: "byte", uint8: "ubyte", int16: "short", uint16: "ushort", int32: "int",
  uint32: "uint", int64: "long", uint64: "ulong", float32: "float", float64: "double",
};
const PRESENCE = "// set where not null: ";

/** The part of the schema language that encore's schemas use. */
export function parseSchema(text) {
  const types = {};
  let root = null;
  let current = null;
  for (const line of text.split("\n")) {
    const opened = line.match(/^(struct|table) (\w+) \{/);
    const field = line.match(/^\s+(\w+): (\[?)(\w+)\]?(?: \(id: (\d+)\))?;/);
    if (opened) {
      current = { kind: opened[1], fields: [], presence: [] };
      types[opened[2]] = current;
    } else if (line.startsWith("root_type ")) {
      root = line.slice("root_type ".length).replace(";", "");
    } else if (current && field) {
      const [, name, bracket, type, id] = field;
      const entry = { name, type: ALIASES[type] ?? type, vector: bracket !== "" };
      entry.id = id === undefined ? current.fields.length : Number(id);
      current.fields.push(entry);
      const comment = line.indexOf(PRESENCE);
      if (comment >= 0) {
        const bits = line.slice(comment + PRESENCE.length).split(", ").map((bit) => bit.split(" "));
        current.presence.push({ byte: name, bits });
      }
    }
  }
  return { types, root };
}

/** Where a struct's members lie: each at a multiple of its size, the whole of the widest. */
function structLayout(type) {
  const offsets = {};
  let position = 0;
  let widest = 1;
  for (const field of type.fields) {
    const [size] = SCALARS[field.type];
    position = Math.ceil(position / size) * size;
    offsets[field.name] = position;
    position += size;
    widest = Math.max(widest, size);
  }
  return { offsets, size: Math.ceil(position / widest) * widest };
}

// --- reading ----------------------------------------------------------------------------------

/** A FlatBuffer's root table as an object; fields that are absent are undefined. */
export function readTable(bytes, schema) {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const table = view.getUint32(0, true);
  const vtable = table - view.getInt32(table, true);
  const vtableBytes = view.getUint16(vtable, true);
  const found = {};
  for (const field of schema.types[schema.root].fields) {
    const entry = 4 + 2 * field.id;
    const offset = entry < vtableBytes ? view.getUint16(vtable + entry, true) : 0;
    if (offset === 0) continue;
    const at = table + offset;
    const read = reader(schema, field.type);
    if (!field.vector) {
      found[field.name] = read.at(view, at);
      continue;
    }
    const vector = at + view.getUint32(at, true);
    const length = view.getUint32(vector, true);
    found[field.name] = Array.from({ length }, (_, i) => read.at(view, vector + 4 + i * read.size));
  }
  return found;
}

function reader(schema, name) {
  if (name in SCALARS) return { size: SCALARS[name][0], at: SCALARS[name][1] };
  const { fields } = schema.types[name];
  const { offsets, size } = structLayout(schema.types[name]);
  const member = (view, at, field) => SCALARS[field.type][1](view, at + offsets[field.name]);
  return {
    size,
    at: (view, at) => Object.fromEntries(fields.map((f) => [f.name, member(view, at, f)])),
  };
}

const TRAILER_BYTES = 28;

/** A stored row: its fields, null where they are null, and its trailer. */
export function readRow(bytes, schema) {
  const end = bytes.byteLength;
  const view = new DataView(bytes.buffer, bytes.byteOffset, end);
  if (end < TRAILER_BYTES || crc32(bytes.subarray(0, end - 4)) !== view.getUint32(end - 4, true)) {
    throw new Error("row: needs the checksum of its bytes, got another; the row is damaged");
  }
  const table = readTable(bytes.subarray(0, end - TRAILER_BYTES), schema);
  const row = { entity_id: table.entity_id };
  for (const group of schema.types[schema.root].fields) {
    const type = schema.types[group.type];
    if (type === undefined) continue;
    const struct = table[group.name] ?? {}; // a row of an older plan has no such group
    for (const { byte, bits } of type.presence) {
      for (const [bit, name] of bits) {
        const there = ((struct[byte] ?? 0) & Number(bit)) !== 0;
        row[name] = there ? (struct[name] ?? table[name]) : null;
      }
    }
  }
  return {
    row,
    trailer: {
      layout: view.getUint32(end - 28, true),
      epoch: view.getUint32(end - 24, true),
      offset: view.getBigInt64(end - 20, true),
      newest_ms: view.getBigInt64(end - 12, true),
    },
  };
}

/** JSON text; BigInt as plain digits, what JSON cannot say (NaN, infinities) as a string. */
export function toJson(value) {
  if (typeof value === "bigint") return value.toString();
  if (typeof value === "number" && !Number.isFinite(value)) return JSON.stringify(String(value));
  if (Array.isArray(value)) return `[${value.map(toJson).join(",")}]`;
  if (value === null || typeof value !== "object") return JSON.stringify(value);
  const members = Object.entries(value).filter(([, member]) => member !== undefined);
  return `{${members.map(([name, member]) => `${JSON.stringify(name)}:${toJson(member)}`).join(",")}}`;
}

// --- writing ----------------------------------------------------------------------------------

const TYPES = [
  "impression", "play", "finish", "click", "long_view", "like",
  "follow", "comment", "share", "dislike", "profile", "delete_user",
];
const VECTOR = 40; // where the structs begin: a batch needs no more than one fixed front
const ACTION_BYTES = 96;

/** One message. actions: of one partition, ids as BigInt; the key is the user's id in decimal. */
export function encodeBatch(sentMs, actions) {
  const bytes = new Uint8Array(VECTOR + ACTION_BYTES * actions.length);
  const view = new DataView(bytes.buffer);
  view.setUint32(0, 16, true); // the table
  bytes.set(new TextEncoder().encode("EACT"), 4);
  [8, 16, 8, 4].forEach((word, i) => view.setUint16(8 + 2 * i, word, true)); // vtable
  view.setInt32(16, 8, true); // back to the vtable
  view.setUint32(20, VECTOR - 4 - 20, true); // on to the vector
  view.setBigInt64(24, BigInt(sentMs), true);
  view.setUint32(VECTOR - 4, actions.length, true);
  actions.forEach((action, i) => putAction(view, VECTOR + ACTION_BYTES * i, action));
  return bytes;
}

function putAction(view, at, action) {
  const { author, music, requestId, position, tags = [] } = action;
  const request = requestId === undefined ? 0n : BigInt(`0x${requestId.replaceAll("-", "")}`);
  const longs = [action.user, action.item, action.timeMs, action.value ?? 0];
  longs.push(request >> 64n, BigInt.asUintN(64, request), author ?? 0, music ?? 0);
  longs.push(...[0, 1, 2].map((i) => tags[i] ?? 0));
  longs.forEach((long, i) => view.setBigInt64(at + 8 * i, BigInt.asIntN(64, BigInt(long)), true));
  view.setUint16(at + 88, action.scene ?? 0, true);
  view.setInt16(at + 90, position ?? 0, true);
  view.setUint8(at + 92, 1 + TYPES.indexOf(action.type));
  const known = [author, music, requestId, position].map((it, i) => (it === undefined ? 0 : 1 << i));
  view.setUint8(at + 93, known.reduce((a, b) => a | b) | (tags.length << 4));
}

// --- the command ------------------------------------------------------------------------------

function exampleBatch() {
  const requestId = "1c1f6a10-3c3b-4f8e-9b43-6f7c0a2b9d11";
  const shown = { user: 712n, item: 5239n, author: 7349781n, requestId, scene: 1, position: 0 };
  return encodeBatch(1650812741500, [
    { ...shown, type: "impression", timeMs: 1650812741436, tags: [39n] },
    {
      ...shown, type: "play", timeMs: 1650812741440, value: 61802,
      music: -9007199254740993n, tags: [39n, -1n, 9223372036854775807n],
    },
    { user: 712n, item: 0n, type: "click", timeMs: 1650812741450 },
  ]);
}

function main([command, ...paths]) {
  if (command === "write") {
    writeFileSync(paths[0], exampleBatch());
    return;
  }
  const schema = parseSchema(readFileSync(paths[0], "utf8"));
  const read = command === "row" ? readRow : readTable;
  console.log(toJson(read(readFileSync(paths[1]), schema)));
}

if (import.meta.url === pathToFileURL(process.argv[1]).href) main(process.argv.slice(2));
