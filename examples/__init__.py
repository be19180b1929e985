"""Example data and recipes, written for this project; `lorary quickstart` reads them."""
