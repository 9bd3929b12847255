// What somebody does with the page, one function each: it acts as they would and throws when the page does not follow.

export * from "./look.mjs";
export * from "./make.mjs";
export * from "./safe.mjs";
