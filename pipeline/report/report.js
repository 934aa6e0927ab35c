"use strict";
// Lets a reader pick which runs the gallery shows; without this script every run is shown.
for (const picker of document.querySelectorAll("[data-picker]")) {
  const boxes = [...picker.querySelectorAll("input[type=checkbox]")];
  const table = document.getElementById(picker.dataset.picker);
  const update = () => {
    for (const box of boxes) {
      for (const row of table.querySelectorAll(`tr[data-run="${box.value}"]`)) {
        row.hidden = !box.checked;
      }
    }
  };
  for (const box of boxes) {
    box.addEventListener("change", update);
  }
  picker.hidden = false;
  update();
}
