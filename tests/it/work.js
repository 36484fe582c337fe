// What programs in JavaScript do.
const { Worker } = require("worker_threads");
const { execFileSync, spawn } = require("child_process");
const fs = require("fs");
const net = require("net");
const { once } = require("events");

async function work() {
  const worker = new Worker('require("worker_threads").parentPort.postMessage(6 * 7)', { eval: true });
  const [answer] = await once(worker, "message");
  if (answer !== 42) throw new Error("a worker answered " + answer);
  await fs.promises.writeFile("written", "x".repeat(100000));
  await fs.promises.copyFile("written", "copied");
  if ((await fs.promises.stat("copied")).size !== 100000) throw new Error("a copy is short");
  fs.watch(".", () => {}).close();
  if (execFileSync("echo", ["child"]).toString() !== "child\n") throw new Error("a child said something else");
  const child = spawn("cat", { stdio: ["pipe", "pipe", "inherit"] });
  child.stdin.end("through a pipe");
  await once(child, "close");
  const server = net.createServer((socket) => socket.end("hello")).listen(0, "127.0.0.1");
  await once(server, "listening");
  const [data] = await once(net.connect(server.address().port, "127.0.0.1"), "data");
  if (data.toString() !== "hello") throw new Error("a server said something else");
  server.close();
}

work().then(() => console.log("fine"));
