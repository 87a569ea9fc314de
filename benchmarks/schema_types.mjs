// Types of Zod 4, as z.toJSONSchema and OpenAI's helpers give their schemas, with values that each takes and refuses.
//
//     npm install zod openai && node schema_types.mjs      # prints a list as JSON

import { zodFunction, zodResponseFormat, zodTextFormat } from "openai/helpers/zod";
import { z } from "zod";

const Category = z.object({ name: z.string(), get children() { return z.array(Category); } });
const Shape = z.discriminatedUnion("kind", [
  z.object({ kind: z.literal("circle"), radius: z.number().positive() }),
  z.object({ kind: z.literal("box"), sides: z.array(z.number()).length(2) }),
]);
const Event = z.object({ title: z.string(), day: z.enum(["Mon", "Tue"]), guests: z.array(z.string()), note: z.string().nullable() });

const types = [
  ["string", z.string(), ["a", ""], [1, null]],
  ["string lengths", z.string().min(2).max(3), ["ab", "abc"], ["a", "abcd"]],
  ["regex", z.string().regex(/^[A-Z]{2}-\d+$/), ["AB-1"], ["ab-1", "AB-"]],
  ["starts and ends", z.string().startsWith("a").endsWith("z"), ["az", "abcz"], ["a", "bz"]],
  ["email", z.email(), ["a.b@example.org"], ["a@b", ".a@b.org", "a..b@c.org"]],
  ["url", z.url(), ["https://example.org/a?b=c"], ["a b", "example"]],
  ["uuid", z.uuid(), ["123e4567-e89b-42d3-a456-426614174000"], ["123e4567", "123e4567-e89b-02d3-a456-426614174000"]],
  ["date", z.iso.date(), ["2024-02-29"], ["2023-02-29", "2024"]],
  ["date and time", z.iso.datetime(), ["2024-02-29T10:00:00Z"], ["2024-02-29", "2024-02-30T10:00:00Z"]],
  ["time", z.string().regex(/^\d{2}:\d{2}$/), ["10:20"], ["1:2"]],
  ["ipv4", z.ipv4(), ["10.0.0.1"], ["10.0.0.256"]],
  ["ipv6", z.ipv6(), ["fe80::1"], ["fe80"]],
  ["base64", z.base64(), ["aGk=", ""], ["a", "=aaa"]],
  ["int", z.int(), [0, -7, 9007199254740991], [1.5, "1", 9007199254740992]],
  ["int in bounds", z.int().min(1).max(5), [1, 5], [0, 6]],
  ["number", z.number().gt(0).lt(1.5), [0.1, 1], [0, 1.5]],
  ["multiple", z.number().multipleOf(0.5), [1.5, 2], [0.3]],
  ["boolean", z.boolean(), [true], ["true", 0]],
  ["null", z.null(), [null], [0]],
  ["literal", z.literal("on"), ["on"], ["off"]],
  ["enum", z.enum(["a", "b"]), ["a"], ["c"]],
  ["nullable", z.string().nullable(), [null, "a"], [1]],
  ["array", z.array(z.int()).min(1).max(2), [[1], [1, 2]], [[], [1, 2, 3], ["a"]]],
  ["tuple", z.tuple([z.string(), z.int()]), [["a", 1]], [["a"], [1, "a"], ["a", 1, 2]]],
  ["record", z.record(z.string(), z.int()), [{}, { a: 1 }], [{ a: "b" }]],
  ["record of an enum", z.record(z.enum(["a", "b"]), z.boolean()), [{ a: true, b: false }], [{ a: true }, { a: true, b: true, c: true }]],
  ["object", z.object({ a: z.string(), b: z.int().optional() }), [{ a: "x" }, { a: "x", b: 1 }], [{}, { a: 1 }]],
  ["strict object", z.strictObject({ a: z.string() }), [{ a: "x" }], [{ a: "x", b: 1 }]],
  ["union", z.union([z.int(), z.array(z.string())]), [1, ["a"]], ["a", [1]]],
  ["discriminated union", Shape, [{ kind: "circle", radius: 1 }, { kind: "box", sides: [1, 2] }], [{ kind: "box", radius: 1 }, { kind: "circle", radius: 0 }]],
  ["intersection", z.intersection(z.object({ a: z.string() }), z.object({ b: z.int() })), [{ a: "x", b: 1 }], [{ a: "x" }]],
  ["recursion", Category, [{ name: "a", children: [{ name: "b", children: [] }] }], [{ name: "a" }, { name: "a", children: [1] }]],
].map(([name, type, good, bad]) => ["zod: " + name, z.toJSONSchema(type), type, good, bad]);

const format = (name, type, good, bad) => ["openai (node): " + name, zodResponseFormat(type, "x").json_schema.schema, type, good, bad];
const invited = { title: "T", day: "Mon", guests: ["a"], note: null };
const refused = [{ ...invited, day: "Sun" }, { title: "T" }];
types.push(
  format("response format", Event, [invited], refused),
  format("recursion", Category, [{ name: "a", children: [] }], [{ name: "a" }]),
  format("union within", z.object({ shape: Shape }), [{ shape: { kind: "circle", radius: 2 } }], [{ shape: {} }]),
  ["openai (node): text format", zodTextFormat(Event, "x").schema, Event, [invited], refused],
  ["openai (node): function", zodFunction({ name: "x", parameters: Event }).function.parameters, Event, [invited], refused],
);

console.log(JSON.stringify(types.map(([name, schema, type, good, bad]) => {
  for (const [values, wanted] of [[good, true], [bad, false]])
    for (const value of values)
      if (type.safeParse(value).success !== wanted) throw new Error(`${name}: ${JSON.stringify(value)}`);
  return { name, schema, good, bad };
})));
