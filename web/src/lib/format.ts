// Figures as people read them. What is not known is a dash, never a zero.

export function seconds(value: number | null | undefined): string {
  if (value === null || value === undefined) return "–";
  if (value < 10) return `${value.toFixed(1)} s`;
  if (value < 90) return `${Math.round(value)} s`;
  if (value < 5400) return `${Math.round(value / 60)} min`;
  return `${(value / 3600).toFixed(1)} h`;
}

export function bytes(value: number | null | undefined): string {
  if (value === null || value === undefined) return "–";
  const units = ["B", "KB", "MB", "GB", "TB"];
  let unit = 0;
  while (value >= 1000 && unit < units.length - 1) {
    value /= 1000;
    unit += 1;
  }
  return `${value < 10 && unit > 0 ? value.toFixed(1) : Math.round(value)} ${units[unit]}`;
}

export function percent(value: number | null | undefined): string {
  return value === null || value === undefined ? "–" : `${Math.round(value * 100)} %`;
}

export function ago(time: string | number | null | undefined): string {
  if (typeof time !== "string") return "–";
  const passed = (Date.now() - Date.parse(time)) / 1000;
  return passed < 5 ? "just now" : `${seconds(passed)} ago`;
}

export function words(value: string): string {
  return value.replaceAll("_", " ");
}
