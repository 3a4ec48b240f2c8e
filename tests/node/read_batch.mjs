// ADDRESS START SIZE SEED [CUT] -> JSON: the reply of GetMixture, and the SHA-256 of every array of GetBatchAt.
//
// Uses only the .proto. With CUT the client sends the request without its last CUT bytes. Exit code 0 with a batch, 3
// with {"error": …} if the server refused it. As our commands do, it takes the authority of a server with TLS from the
// file that MIXSERVE_CA names, and its token from MIXSERVE_TOKEN. NODE_CERTIFICATE and NODE_KEY name the files of its own
// certificate.
import { createHash } from "node:crypto";
import { readFileSync } from "node:fs";
import { fileURLToPath } from "node:url";
import { promisify } from "node:util";

import grpc from "@grpc/grpc-js";
import loader from "@grpc/proto-loader";

const PROTOS = fileURLToPath(new URL("../../protos", import.meta.url));
const DEADLINE_MS = 60_000;

const [address, start, size, seed, cut = "0"] = process.argv.slice(2);
if (seed === undefined) {
  console.error("usage: read_batch.mjs ADDRESS START SIZE SEED [CUT]");
  process.exit(2);
}

// 64-bit numbers stay strings: positions exceed 2^53, above which JavaScript's numbers are not exact.
const options = { includeDirs: [PROTOS], keepCase: true, longs: String, defaults: true };
const definition = loader.loadSync("mixserve/v1/mix.proto", options);
const { MixService } = grpc.loadPackageDefinition(definition).mixserve.v1;
const client = new MixService(address, credentials(), { "grpc.max_receive_message_length": -1 });

function credentials() {
  const { MIXSERVE_CA: ca, NODE_KEY: key, NODE_CERTIFICATE: certificate } = process.env;
  if (!ca) return grpc.credentials.createInsecure();
  const [roots, ...own] = [ca, key, certificate].map((path) => (path ? readFileSync(path) : null));
  return grpc.credentials.createSsl(roots, ...own);
}

// A new object for each call: gRPC adds to it.
function metadata() {
  const made = new grpc.Metadata();
  const token = process.env.MIXSERVE_TOKEN;
  if (token) made.set("authorization", `Bearer ${token}`);
  return made;
}

function call(name, message, cutBytes = 0) {
  const { path, requestSerialize, responseDeserialize } = MixService.service[name];
  const request = requestSerialize(message);
  const bytes = request.subarray(0, request.length - cutBytes);
  const deadline = Date.now() + DEADLINE_MS;
  const send = promisify(client.makeUnaryRequest.bind(client));
  return send(path, (same) => same, responseDeserialize, bytes, metadata(), { deadline });
}

function describe({ name, dtype, shape, data }) {
  return { name, dtype, shape, sha256: createHash("sha256").update(data).digest("hex") };
}

try {
  const mixture = await call("GetMixture", {});
  const key = { implementation: "threefry2x32", words: [0, Number(seed)] };
  const { fingerprint, arrays } = await call("GetBatchAt", { start, size, key }, Number(cut));
  console.log(JSON.stringify({ mixture, fingerprint, arrays: arrays.map(describe) }));
} catch (error) {
  if (!(error.metadata instanceof grpc.Metadata)) throw error;
  const [name = null] = error.metadata.get("mixserve-error");
  console.log(JSON.stringify({ error: { code: grpc.status[error.code], name, message: error.details } }));
  process.exitCode = 3;
} finally {
  client.close();
}
